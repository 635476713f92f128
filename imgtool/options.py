"""Typed option tables: one declaration checks ``-o``, prints ``-o help`` and feeds the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imgtool.errors import BadOption
from imgtool.units import parse_size

_TRUE = frozenset(("on", "yes", "true", "y"))
_FALSE = frozenset(("off", "no", "false", "n"))


def parse_bool(name: str, value: object) -> bool:
    """Return what ``on`` or ``off`` (or True, False) means for the option ``name``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
    raise BadOption(f"Parameter '{name}' expects 'on' or 'off'")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadOption(f"Parameter '{name}' expects a string")
    return value


def _number(name: str, value: object) -> int:
    try:
        if isinstance(value, (str, int)):
            return int(value)
    except ValueError:
        pass
    raise BadOption(f"Parameter '{name}' expects a number")


def _size(name: str, value: object) -> int:
    if not isinstance(value, (str, int)):
        raise BadOption(f"Parameter '{name}' expects a size")
    try:
        return parse_size(value)
    except BadOption as error:
        raise BadOption(
            f"Parameter '{name}' expects a non-negative number below 2^63, "
            "with an optional suffix k, M, G, T, P or E"
        ) from error


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "str": _text,
    "bool (on/off)": parse_bool,
    "num": _number,
    "size": _size,
}


@dataclass(frozen=True)
class Option:
    """One option: its ``name``, its ``type`` as ``-o help`` shows it, and what it is for.

    ``type`` is one of ``str``, ``bool (on/off)``, ``num`` and ``size`` (bytes, suffixes allowed).
    ``choices``, where given, are the only values allowed.
    """

    name: str
    type: str
    help: str
    choices: tuple[str, ...] = ()

    def parse(self, value: object) -> Any:
        """Return ``value`` as the type says; raises :class:`BadOption`."""
        parsed = _PARSERS[self.type](self.name, value)
        if self.choices and parsed not in self.choices:
            raise BadOption(
                f"Invalid value '{parsed}' for option '{self.name}': "
                f"choose one of {', '.join(self.choices)}"
            )
        return parsed


@dataclass(frozen=True)
class OptionTable:
    """The options that a format takes, in the order in which help lists them."""

    options: tuple[Option, ...] = ()

    def __iter__(self) -> Iterator[Option]:
        return iter(self.options)

    def __contains__(self, name: str) -> bool:
        return any(option.name == name for option in self.options)

    def check(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Return ``values`` parsed; names may use ``-`` for ``_``. None stands for "not given".

        Raises :class:`BadOption` for unknown names and values of the wrong type.
        """
        known = {option.name.replace("-", "_"): option for option in self.options}
        checked: dict[str, Any] = {}
        for name, value in values.items():
            option = known.get(name.replace("-", "_"))
            if option is None:
                raise BadOption(f"Invalid parameter '{name}'")
            if value is not None:
                checked[option.name.replace("-", "_")] = option.parse(value)
        return checked

    def help_lines(self) -> Iterator[str]:
        """One line an option, laid out as ``-o help`` prints them."""
        for option in sorted(self.options, key=lambda option: option.name):
            head = f"  {option.name}=<{option.type}>"
            choices = f" (allowed values: {', '.join(option.choices)})" if option.choices else ""
            yield f"{head:<24} - {option.help}{choices}"


def split_pairs(text: str) -> list[tuple[str, str]]:
    """Split ``"a=1,b=x,,y,c"`` into pairs: ``,,`` is a comma, a name alone is switched on."""
    parts: list[str] = []
    for part in text.replace(",,", "\0").split(","):
        parts.append(part.replace("\0", ","))
    pairs: list[tuple[str, str]] = []
    for part in parts:
        name, equals, value = part.partition("=")
        if not name:
            if equals:
                raise BadOption(f"Invalid option list: '{text}'")
            continue
        if not equals:
            name, value = (
                (name[2:], "off") if name.startswith("no") and name != "nocow" else (name, "on")
            )
        pairs.append((name, value))
    return pairs
