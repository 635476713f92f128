"""What a disk may hold: everything it has been, and how much of that was promised to last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tests.kit.recording import SECTOR


class Bits(NamedTuple):
    """A persistent bitmap as it can be seen; ``ranges`` is None while it cannot be trusted."""

    name: str
    granularity: int
    enabled: bool
    ranges: tuple[tuple[int, int], ...] | None


class Shape(NamedTuple):
    """What of an image changes as a whole: a state has one shape or another, never a mixture.

    ``facts`` are the header's (version, names, options); snapshots come with their contents.
    """

    size: int
    facts: tuple[object, ...] = ()
    snapshots: tuple[tuple[str, bytes], ...] = ()
    bitmaps: tuple[Bits, ...] = ()


@dataclass
class Segment:
    """A stretch of a disk's life in which its shape stayed.

    ``contents`` are what the guest would see after each write, with the place in the log where it
    began. A segment without a shape is that of no image: the file opens as nothing.
    ``baselines`` say what the disk held when a bitmap was clean; with ``tracking`` bitmaps may be
    marked as not to be trusted. ``damaged`` images want repair before they are judged;
    parts of ``unreadable`` ones cannot be read until then, and from those ``beyond_qemu`` QEMU's
    repair does not take all of the damage.
    """

    shape: Shape | None
    contents: list[tuple[int, bytes]]
    baselines: dict[str, bytes] = field(default_factory=dict)
    tracking: bool = False
    damaged: bool = False
    unreadable: bool = False
    beyond_qemu: bool = False
    flags_lag: bool = False


class Candidate(NamedTuple):
    """A segment that a state may be in, with the contents that are not too old for it."""

    segment: Segment
    contents: list[bytes]


class History:
    """The segments of one disk, and what was acknowledged as durable, by places in the log."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._promises: list[tuple[int, int, int]] = []

    @property
    def last(self) -> Segment:
        return self.segments[-1]

    def begin(self, segment: Segment) -> None:
        """Another shape is on its way."""
        self.segments.append(segment)

    def change(self, position: int, content: bytes) -> int:
        """A write is on its way. Returns its number, for :meth:`promise`."""
        self.last.contents.append((position, content))
        return len(self.last.contents) - 1

    def promise(self, position: int, number: int | None = None) -> None:
        """The newest contents, or those of this number, have been acknowledged as durable."""
        newest = len(self.last.contents) - 1
        segment = len(self.segments) - 1
        self._promises.append((position, segment, newest if number is None else number))

    def candidates(self, position: int) -> list[Candidate]:
        """What a state at this place in the log may be."""
        first, oldest = 0, 0
        for promised, segment_index, content_index in self._promises:
            if promised <= position:
                first, oldest = max((first, oldest), (segment_index, content_index))
        found = []
        for index in range(first, len(self.segments)):
            segment = self.segments[index]
            begun = [
                content
                for place, (began, content) in enumerate(segment.contents)
                if began <= position and (index > first or place >= oldest)
            ]
            if begun:
                found.append(Candidate(segment, begun))
        return found


def strangers(content: bytes, allowed: list[bytes]) -> Iterator[int]:
    """The sectors of ``content`` that are as in none of the ``allowed`` contents."""
    if content in allowed:
        return
    sectors = _sectors(content)
    wrong = np.ones(len(sectors), dtype=np.bool_)
    for one in allowed:
        wrong &= (sectors != _sectors(one.ljust(len(content), b"\0"))[: len(sectors)]).any(axis=1)
    yield from np.flatnonzero(wrong).tolist()


def differing(content: bytes, other: bytes) -> list[int]:
    """The sectors in which two contents of a disk differ, as far as both go."""
    size = min(len(content), len(other))
    return np.flatnonzero((_sectors(content[:size]) != _sectors(other[:size])).any(axis=1)).tolist()


def _sectors(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint64).reshape(-1, SECTOR // 8)
