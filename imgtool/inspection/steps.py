"""What an inspector asks for: regions of the file, and its size.

Ask for regions before the size, and in ascending order where there is a choice: in a stream the
size is known at the end, and what has gone past is gone, but for a window at the start and one at
the end.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from imgtool.errors import CorruptImage

#: The most bytes that one region may have: the largest cluster of any format that is looked into.
MAX_REGION = 2 << 20
#: How much of a long table is asked for at a time.
PIECE = 64 << 10


class Region(NamedTuple):
    """Bytes that an inspector wants; the answer is shorter where the file ends first.

    ``what`` names them for the case that they can't be had.
    """

    offset: int
    length: int
    what: str


class Size(NamedTuple):
    """The length of the file, which a stream tells when it has ended."""


class NotSeen(Exception):
    """Thrown into an inspector whose region can't be had, for ``reason``.

    Left alone it ends the inspector's task, and the region is noted as not checked.
    """

    def __init__(self, region: Region, reason: str) -> None:
        super().__init__(reason)
        self.region = region
        self.reason = reason


class Gone(NotSeen):
    """The region has gone by in a stream, which can't be gone back in."""


T = TypeVar("T")
Steps = Generator[Region | Size, Any, T]


def read(offset: int, length: int, what: str) -> Steps[bytes]:
    """The bytes of a region, as far as the file has them."""
    data: bytes = yield Region(offset, length, what)
    return data


def read_exact(offset: int, length: int, what: str) -> Steps[bytes]:
    """The bytes of a region, all of them. Raises :class:`CorruptImage` if the file ends first."""
    data: bytes = yield Region(offset, length, what)
    if len(data) != length:
        raise CorruptImage(f"{what} lies past the end of the file", offset)
    return data


def file_size() -> Steps[int]:
    """The length of the file in bytes."""
    size: int = yield Size()
    return size


class pieces:  # noqa: N801 - reads as a function does
    """A long region, a piece at a time: ``while piece := (yield from table.next()):``."""

    def __init__(self, offset: int, length: int, what: str) -> None:
        self.offset = offset
        self._end = offset + length
        self._what = what

    def next(self) -> Steps[bytes]:
        """The next piece; empty behind the last one, or where the file ends."""
        length = min(PIECE, self._end - self.offset)
        if length <= 0:
            return b""
        data = yield from read(self.offset, length, self._what)
        self.offset += len(data)
        if len(data) < length:
            self._end = self.offset
        return data
