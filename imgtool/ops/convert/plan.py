"""What there is to copy: windows of the disk that hold data, in order.

The plan comes from the mapping alone. A window is a range of bounded length, aligned like the
target's clusters, with the parts of it that must be read; ranges without data never become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgtool.device import BlockDevice
from imgtool.extent import Extent, Kind

#: Bytes of the disk that are copied in one go.
WINDOW = 4 << 20


class Window(NamedTuple):
    """``[offset, offset + length)`` of the disk, and the parts of it that may hold data."""

    offset: int
    length: int
    data: list[Extent]


def windows(extents: Iterable[Extent], size: int, length: int) -> Iterator[Window]:
    """Cut what is data in ``extents``, which are in order, into windows of ``length`` bytes.

    Windows begin at multiples of ``length`` and end with the disk of ``size`` bytes.
    """
    start = -1
    parts: list[Extent] = []
    for extent in extents:
        if extent.reads_zero:
            continue
        offset = extent.offset
        while offset < extent.end:
            here = offset - offset % length
            if here != start:
                if parts:
                    yield Window(start, min(length, size - start), parts)
                start, parts = here, []
            stop = min(extent.end, here + length)
            parts.append(extent.clip(offset, stop))
            offset = stop
    if parts:
        yield Window(start, min(length, size - start), parts)


def all_of(size: int) -> Iterator[Extent]:
    """The whole disk as data: what is planned when nothing may be left out."""
    if size:
        yield Extent(0, size, Kind.DATA)


def differing(
    source: BlockDevice, base: BlockDevice, extents: Iterable[Extent] | None = None
) -> Iterator[Extent]:
    """The ranges in which ``source`` may differ from ``base``, judged by the mappings alone.

    Only ``extents`` of the source are looked at, by default all of them. Ranges that read as zero
    in both, and those whose bytes lie in the same place of the same host file, cannot differ. What
    ``base`` is too short for counts as zeros.
    """
    size = source.size
    common = min(size, base.size)
    below = _padded(base.extents(0, common), common, size)
    lower = next(below, None)
    for upper in source.extents() if extents is None else extents:
        offset = upper.offset
        while offset < upper.end:
            while lower is not None and lower.end <= offset:
                lower = next(below, None)
            assert lower is not None
            stop = min(upper.end, lower.end)
            mine, theirs = upper.clip(offset, stop), lower.clip(offset, stop)
            if not (mine.reads_zero and theirs.reads_zero) and not _same_bytes(mine, theirs):
                # It must be compared, and therefore read, even where this side is all zeros.
                readable = mine.kind is Kind.DATA and not mine.hole
                yield mine if readable else Extent(offset, stop - offset, Kind.DATA)
            offset = stop


def _padded(extents: Iterable[Extent], end: int, size: int) -> Iterator[Extent]:
    yield from extents
    if end < size:
        yield Extent(end, size - end, Kind.UNALLOCATED)


def _same_bytes(one: Extent, other: Extent) -> bool:
    if one.storage is None or other.storage is None or one.host_offset is None:
        return False
    return (
        one.kind is Kind.DATA
        and other.kind is Kind.DATA
        and one.host_offset == other.host_offset
        and one.storage.identity is not None
        and one.storage.identity == other.storage.identity
    )
