"""The standard streams: what is written to them arrives whole, or it is known that it did not."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


_INPUT = "standard input"
_OUTPUT = "standard output"


class _Input(io.FileIO):
    """Standard input, which is waited for: whoever shares it may have set it not to wait."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while True:
            count: int | None = super().readinto(buffer)
            if count is not None:
                return count
            # Nothing has come yet, which is not the end.
            import select

            select.select([self], [], [])


class _Output(io.FileIO):
    """Standard output, whose errors say that they are its own."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, _OUTPUT) from None
        if written is None:
            raise OSError(errno.EIO, "it is set not to wait for whoever reads it", _OUTPUT)
        return written


class _Messages(io.FileIO):
    """Standard error: a message that finds no room is lost, and what it tells of goes on."""

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size
        except OSError:
            return size


def prepare() -> None:
    """Put streams of ours in the place of Python's, which may be missing.

    Unbuffered (``PYTHONUNBUFFERED``), Python's drop what a write leaves over.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    elif sys.__stdin__ is not None and sys.stdin is sys.__stdin__:
        sys.stdin = _waiting(sys.stdin)
    for name, kind in (("stdout", _Output), ("stderr", _Messages)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # somebody else has put their own there
        number = os.open(os.devnull, os.O_WRONLY) if stream is None else stream.fileno()
        raw = kind(number, "w", closefd=False)
        ours = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding="utf-8" if stream is None else stream.encoding,
            errors="backslashreplace" if stream is None else stream.errors,
            line_buffering=name == "stderr" or raw.isatty(),
        )
        setattr(sys, name, ours)


def standard_input() -> IO[bytes]:
    """What a file called "-" is read from. Raises ``OSError`` if the caller left it closed."""
    if sys.__stdin__ is None:
        raise OSError(errno.EBADF, "it is closed", _INPUT)
    return sys.stdin.buffer


def _waiting(stream: TextIO) -> TextIO:
    raw = _Input(stream.fileno(), "r", closefd=False)
    raw.name = stream.name
    return io.TextIOWrapper(io.BufferedReader(raw), encoding=stream.encoding, errors=stream.errors)
