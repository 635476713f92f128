"""Byte sizes: what people type, what people read, and rounding to alignments."""

from __future__ import annotations

import re

from imgtool.errors import BadOption

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_SUFFIXES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_SIZE = (
    r"\+?(?P<number>0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<suffix>[bkmgtpeBKMGTPE]?)"
)
#: Python converts no more digits than some thousands, and no size needs them.
_MAX_DIGITS = 1000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

#: The largest size that a signed 64-bit file offset holds.
MAX_SIZE = (1 << 63) - 1


def parse_size(text: str | int) -> int:
    """Return the bytes that ``"10G"``, ``"64k"``, ``"1.5T"``, ``"0x200"`` or ``512`` stand for.

    Suffixes are powers of 1024, in either case, as qemu-img takes them.
    Raises :class:`BadOption` for anything else, and for negative or unrepresentable sizes.
    """
    if isinstance(text, int):
        value = text
    else:
        match = re.fullmatch(_SIZE, text.strip()) if isinstance(text, str) else None
        if match is None:
            raise BadOption(
                f"Invalid size '{text}': give bytes, or a number with one of the suffixes bkMGTPE"
            )
        number, shift = match["number"], _SUFFIXES[match["suffix"].lower()]
        if len(number) > _MAX_DIGITS:
            raise BadOption(f"Invalid size: {len(number)} digits are more than any size has")
        if number[:2] in ("0x", "0X"):
            # A trailing b or e is a hexadecimal digit there, so no suffix can follow.
            if match["suffix"]:
                raise BadOption(f"Invalid size '{text}': a hexadecimal size takes no suffix")
            value = int(number, 16)
        elif "." in number:
            whole, _, fraction = number.partition(".")
            # Exact decimal arithmetic: floats lose bytes above 2**53.
            scale = 10 ** len(fraction)
            if not shift:
                raise BadOption(f"Invalid size '{text}': bytes have no fractions, so give a unit")
            value = (int(whole or "0") * scale + int(fraction or "0")) * (1 << shift)
            value = (2 * value + scale) // (2 * scale)
        else:
            value = int(number) << shift
    if not 0 <= value <= MAX_SIZE:
        raise BadOption(f"Invalid size '{text}': it must be between 0 and 8 EiB - 1")
    return value


def format_size(size: int) -> str:
    """Return ``size`` bytes as qemu-img prints them for people: three digits and a binary unit.

    >>> format_size(10 * 2**30), format_size(197120)
    ('10 GiB', '192 KiB')
    """
    # The unit changes a little early, so that three digits suffice (1000 KiB is 0.977 MiB).
    exponent = 0
    value = float(size)
    while value >= 1000 and exponent < len(_UNITS) - 1:
        value /= 1024
        exponent += 1
    return f"{value:0.3g} {_UNITS[exponent]}"


def align_down(value: int, alignment: int) -> int:
    """Round ``value`` down to a multiple of ``alignment``."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Round ``value`` up to a multiple of ``alignment``."""
    return -(-value // alignment) * alignment


def div_round_up(value: int, divisor: int) -> int:
    """Return how many times ``divisor`` is needed to cover ``value``."""
    return -(-value // divisor)
