"""How failures are told: one line on stderr, in qemu-img's words where it has any."""

from __future__ import annotations

import errno
import os

import click

from imgtool.errors import ImageError

#: What a command may raise; everything else is a defect of imgtool.
ERRORS = (ImageError, OSError)

#: With these the file could not even be opened; others befall files that were.
_OPENING = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.EROFS,
        errno.ETXTBSY,
        errno.EMFILE,
        errno.ENFILE,
    )
)


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that could move the cursor or break the line."""
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        # A byte of a file name that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(who: str, message: str) -> None:
    """Print one line on stderr."""
    click.echo(printable(f"{who}: {message}"), err=True)


def complain(error: ImageError | OSError, status: int = 1) -> int:
    """Print the error's line and return ``status``, for a command to exit with."""
    if isinstance(error, BrokenPipeError):
        raise error  # whoever reads our output has had enough
    say("imgtool", describe(error))
    return status


def describe(error: ImageError | OSError) -> str:
    """Return the message for an error, with every file that it concerns."""
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if not error.opening:
        return f"{error.filename}: {error.reason}" if error.filename else error.reason
    outermost = error.opening[-1]
    if error.filename is None or error.filename == outermost:
        return f"Could not open '{outermost}': {error.reason}"
    role = "Could not open backing file " if error.filename in error.opening else ""
    return f"Could not open '{outermost}': {role}'{error.filename}': {error.reason}"


def while_creating(error: OSError, target: str) -> ImageError | OSError:
    """Return the error to tell if it befell a file that the image ``target`` needed made."""
    if not isinstance(error.filename, str) or error.errno not in _OPENING:
        return error
    return ImageError(f"Could not create '{error.filename}': {error.strerror}", filename=target)


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return reason
    name = os.fsdecode(error.filename)
    if error.errno in _OPENING:
        return f"Could not open '{name}': {reason}"
    return f"{name}: {reason}"
