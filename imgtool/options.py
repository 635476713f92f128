"""Typed option tables: one declaration checks ``-o``, prints ``-o help`` and feeds the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

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
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        pass
    raise BadOption(f"Parameter '{name}' expects a number")


def _size(name: str, value: object) -> int:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
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


class Option(NamedTuple):
    """One option: its ``name``, its ``type`` as ``-o help`` shows it, and what it is for.

    ``type`` is one of ``str``, ``bool (on/off)``, ``num`` and ``size`` (bytes, suffixes allowed).
    ``choices``, where given, are the only values allowed. ``default`` is what the format does
    without the option, where that is worth telling. ``of_file`` marks options that concern the
    host file and not the format: help lists them only for a given file. The value of a ``secret``
    option is the id of a secret; drivers are given the :class:`~imgtool.secrets.Secret` itself.
    """

    name: str
    type: str
    help: str
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    of_file: bool = False
    secret: bool = False

    @property
    def key(self) -> str:
        """The name under which checked options hold the value: ``_`` in place of ``-``."""
        return self.name.replace("-", "_")

    def parse(self, value: object) -> Any:
        """Return ``value`` as the type says; raises :class:`BadOption`."""
        parsed = _PARSERS[self.type](self.name, value)
        if self.choices and parsed not in self.choices:
            raise BadOption(
                f"Parameter '{self.name}' does not accept value '{parsed}': "
                f"choose one of {', '.join(self.choices)}"
            )
        return parsed

    def show(self, value: object) -> str:
        """Return the text that stands for ``value`` in an option list, commas doubled."""
        if isinstance(value, bool):
            return "on" if value else "off"
        return str(value).replace(",", ",,")


#: Options of the host file, which every format has.
NOCOW = Option(
    "nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)", of_file=True
)
EXTENT_SIZE_HINT = Option(
    "extent_size_hint",
    "size",
    "Extent size hint for the image file, 0 to disable",
    of_file=True,
)
#: The same, for those in which every byte of the disk has its place in the file.
FILE_PREALLOCATION = Option(
    "preallocation", "str", "Preallocation mode", choices=("off", "falloc", "full"), of_file=True
)


class OptionTable:
    """The options that a format takes, in the order in which ``create`` tells them."""

    def __init__(self, options: tuple[Option, ...] = ()) -> None:
        self.options = options

    def __iter__(self) -> Iterator[Option]:
        return iter(self.options)

    def __contains__(self, name: str) -> bool:
        return any(option.name == name for option in self.options)

    def check(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Return ``values`` parsed, by :attr:`Option.key`. None stands for "not given".

        Names may use ``-`` for ``_``, and ``_`` where dots are: keyword arguments have none. A
        secret may be given itself, in place of its id.

        Raises :class:`BadOption` for unknown names and values of the wrong type.
        """
        known = {option.key: option for option in self.options}
        known.update((option.key.replace(".", "_"), option) for option in self.options)
        checked: dict[str, Any] = {}
        for name, value in values.items():
            option = known.get(name.replace("-", "_"))
            if option is None:
                raise BadOption(f"Invalid parameter '{name}'")
            if value is not None:
                given = option.secret and not isinstance(value, str)
                checked[option.key] = value if given else option.parse(value)
        return checked

    def told(self, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """The names and values that ``create`` prints: those given, and the defaults."""
        for option in self.options:
            value = values.get(option.key, option.default)
            if value is not None:
                yield option.name, option.show(value)

    def help_lines(self, *, of_file: bool = True) -> Iterator[str]:
        """One line an option, sorted and laid out as ``-o help`` prints them."""
        for option in sorted(self.options, key=lambda option: option.name):
            if option.of_file and not of_file:
                continue
            head = f"  {option.name}=<{option.type}>"
            choices = f" (allowed values: {', '.join(option.choices)})" if option.choices else ""
            yield f"{head:<24} - {option.help}{choices}"


def split_pairs(text: str) -> list[tuple[str, str]]:
    """Split ``"a=1,b=x,,y,c"`` into pairs: ``,,`` is a comma, a name alone is switched on.

    ``noNAME`` alone is ``NAME=off``. Raises :class:`BadOption` for empty names.
    """
    pairs: list[tuple[str, str]] = []
    for part in text.replace(",,", "\0").split(","):
        name, equals, value = part.replace("\0", ",").partition("=")
        if not name:
            raise BadOption(f"Invalid option list: '{text}'")
        if not equals:
            value = "on"
            if name.startswith("no") and name != "nocow":
                name, value = name[2:], "off"
        pairs.append((name, value))
    return pairs
