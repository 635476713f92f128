"""The standard streams: what is written to them arrives whole, or it is known that it did not."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_OUTPUT = "standard output"


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
