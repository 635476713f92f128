"""Numbers in options, and what is said of those that are not acceptable."""

from __future__ import annotations

import re
from collections.abc import Callable

import click

from imgtool.errors import BadOption
from imgtool.units import MAX_SIZE, parse_size

#: The most that qemu-img counts.
MAX_COUNT = (1 << 31) - 1

#: Python converts no more digits than some thousands; what has more than this is out of range.
_MAX_DIGITS = 100
_NUMBER = r"\s*(?P<sign>[+-]?)(?P<digits>0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"
_SIZE = r"\s*-?[0-9]+[bkmgtpeBKMGTPE]?"


def parse_number(text: str) -> int | None:
    """Return a whole number: decimal, ``0x`` hexadecimal, or octal behind a ``0``."""
    match = re.fullmatch(_NUMBER, text)
    if match is None:
        return None
    digits = match["digits"]
    if len(digits) > _MAX_DIGITS:
        digits = hex(1 << 64)
    octal = digits.startswith("0") and digits[1:].isdecimal()
    value = int(digits, 8 if octal else 0)
    return -value if match["sign"] == "-" else value


def number(text: str, what: str, low: int = 0, high: int = MAX_COUNT) -> int:
    """Return the number from ``low`` to ``high`` that ``text`` is; ``what`` is for the message."""
    value = parse_number(text)
    if value is None:
        raise BadOption(f"Invalid {what} specified: '{text}'.")
    return _within(value, what, low, high)


def size(text: str, what: str, low: int = 0, high: int = MAX_SIZE) -> int:
    """Return the bytes from ``low`` to ``high`` that ``text`` stands for, suffixes allowed."""
    try:
        return _within(parse_size(text), what, low, high)
    except BadOption:
        if not re.fullmatch(_SIZE, text):
            raise BadOption(f"Invalid {what} specified: '{text}'.") from None
        return _within(-1, what, low, high)


def _within(value: int, what: str, low: int, high: int) -> int:
    if not low <= value <= high:
        raise BadOption(f"Invalid {what} specified. Must be between {low} and {high}.")
    return value


def option_of(
    parse: Callable[..., int], what: str, low: int = 0, high: int = MAX_COUNT
) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """Return a click callback that parses an option's value with :func:`number` or :func:`size`."""

    def callback(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | None:
        return None if value is None else parse(value, what, low, high)

    return callback
