"""The language of ``io``: verbs with options and arguments, one line each."""

from __future__ import annotations

import getopt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import click

from imgtool.cli.errors import ERRORS, complain, printable
from imgtool.device import BlockDevice
from imgtool.errors import BadOption
from imgtool.units import parse_size

#: Any number of arguments.
ANY = 1 << 30


class Refused(Exception):
    """A line cannot be carried out; the text says why, and goes to stdout as results do."""


class WrongUsage(Exception):
    """The arguments do not go together: what the verb takes is shown."""


@dataclass
class Session:
    """What the lines of one run share. ``device`` is None if no image was named.

    ``guessed`` says that the image was opened read-only because nobody said that it is raw.
    """

    device: BlockDevice | None
    guessed: bool = False
    done: bool = False

    @property
    def disk(self) -> BlockDevice:
        """The open disk."""
        if self.device is None:
            raise BadOption("no image is open: name one on the command line")
        return self.device

    def require_writable(self) -> None:
        """Refuse to go on with a disk that is not to be written to."""
        if self.guessed:
            raise BadOption(
                "Its format is only guessed to be raw, and a guess is not written to: "
                "give the format with -f",
                filename=self.disk.name,
            )
        if self.disk.read_only:
            raise BadOption("The disk is open read-only", filename=self.disk.name)


@dataclass(frozen=True)
class Line:
    """One line, taken apart: ``options`` by letter (those without a value have an empty one)."""

    verb: Verb
    options: Mapping[str, str]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """What a line may begin with.

    ``letters`` are its options as getopt wants them, ``least`` and ``most`` how many words may
    follow, ``takes`` shows them to people, ``about`` and ``details`` say what it does. ``run``
    returns whether all went well.
    """

    name: str
    run: Callable[[Session, Line], bool]
    about: str
    takes: str = ""
    letters: str = ""
    least: int = 0
    most: int = 0
    alias: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def usage(self) -> str:
        """One line for people."""
        return f"{self.name} {self.takes} -- {self.about}".replace("  ", " ")


def carry_out(session: Session, verbs: Mapping[str, Verb], text: str) -> bool:
    """Carry out one line, and return whether all went well; what did not has been told."""
    name, *words = text.split() or [""]
    if not name:
        return True
    verb = verbs.get(name)
    if verb is None:
        _complain(f'command "{name}" not found')
        return False
    if not verb.least <= len(words) <= verb.most:
        _complain(f"bad argument count {len(words)} to {name}, expected {_expected(verb)}")
        return False
    try:
        options, arguments = getopt.gnu_getopt(words, verb.letters)
        given = {option[1:]: value for option, value in options}
        return verb.run(session, Line(verb, given, tuple(arguments)))
    except getopt.GetoptError as error:
        known = error.opt and error.opt in verb.letters
        what = "option requires an argument" if known else "invalid option"
        _complain(f"{name}: {what} -- '{error.opt}'")
        click.echo(verb.usage)
    except WrongUsage:
        click.echo(verb.usage)
    except Refused as error:
        click.echo(printable(str(error)))
    except ERRORS as error:
        complain(error)
    return False


def _complain(text: str) -> None:
    click.echo(printable(text), err=True)


def _expected(verb: Verb) -> str:
    if verb.least == verb.most:
        return f"{verb.least} arguments"
    if verb.most == ANY:
        return f"at least {verb.least} arguments"
    return f"between {verb.least} and {verb.most} arguments"


def byte_number(text: str) -> int:
    """Return the bytes that ``text`` stands for; raises :class:`Refused`."""
    try:
        return parse_size(text)
    except BadOption:
        number = text[:-1] if text[-1:].lower() in set("bkmgtpe") else text
        if number.isdecimal():
            raise Refused(f"Parsing error: argument too large -- {text}") from None
        raise Refused(
            f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        ) from None
