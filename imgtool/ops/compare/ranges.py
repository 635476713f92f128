"""Which ranges of two disks have to be read to know whether they are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgtool.device import BlockDevice
from imgtool.errors import ImageError, OverBudget
from imgtool.extent import Extent, Kind
from imgtool.ops.compare.errors import UnknownAllocation, reason

#: Bytes that are read from each disk at a time.
WINDOW = 1 << 20
#: Ranges that cannot differ are read all the same, between others, if they are shorter than this.
_GAP = 64 << 10

Status = tuple[bool, bool, bool, bool]


class Range(NamedTuple):
    """A range of both disks, in bytes, and what either says of it."""

    offset: int
    end: int
    first: Extent
    second: Extent


class Window(NamedTuple):
    """A range that has to be read from the disks for which that is said; others have zeros."""

    offset: int
    end: int
    read_first: bool
    read_second: bool


def paired(first: BlockDevice, second: BlockDevice) -> Iterator[Range]:
    """Cover the longer of two disks with ranges of which one thing is true in either."""
    total = max(first.size, second.size)
    ones, others = _padded(first, total), _padded(second, total)
    one, other = next(ones, None), next(others, None)
    offset = 0
    while one is not None and other is not None:
        end = min(one.end, other.end)
        yield Range(offset, end, one.clip(offset, end), other.clip(offset, end))
        offset = end
        if one.end == end:
            one = next(ones, None)
        if other.end == end:
            other = next(others, None)


def _padded(device: BlockDevice, total: int) -> Iterator[Extent]:
    """The extents of a disk, and what it lacks to ``total`` bytes."""
    try:
        yield from device.extents()
    except OverBudget:
        raise
    except (OSError, ImageError) as error:
        raise UnknownAllocation(
            f"Allocation test failed: {reason(error)}", filename=device.name
        ) from error
    if device.size < total:
        yield Extent(device.size, total - device.size, Kind.UNALLOCATED)


class Alike:
    """The ranges up to the first whose allocation differs; ``unlike`` is its offset, if any."""

    def __init__(self, first: BlockDevice, second: BlockDevice) -> None:
        self.unlike: int | None = None
        self._ranges = paired(first, second)
        self._backed = (_backed(first), _backed(second))

    def __iter__(self) -> Iterator[Range]:
        for found in self._ranges:
            if _status(found.first, self._backed[0]) != _status(found.second, self._backed[1]):
                self.unlike = found.offset
                return
            yield found


def _backed(device: BlockDevice) -> list[bool]:
    """For each image of a chain, whether there is another below it."""
    below = device.backing
    return [False] if below is None else [True, *_backed(below)]


def _status(extent: Extent, backed: list[bool]) -> Status:
    """What strict mode goes by: whether a range is allocated, zero, compressed, and somewhere."""
    # What an image leaves to one below that is too short for it counts as its own zeros.
    allocated = extent.kind is not Kind.UNALLOCATED or backed[extent.depth]
    return (
        allocated,
        extent.reads_zero,
        extent.kind is Kind.COMPRESSED,
        extent.host_offset is not None,
    )


def windows(ranges: Iterable[Range]) -> Iterator[Window]:
    """What has to be read of ``ranges``, in order, in windows of limited length."""
    pending: Window | None = None
    for found in ranges:
        zeros = found.first.reads_zero, found.second.reads_zero
        if all(zeros) or _same_bytes(found.first, found.second):
            continue
        window = Window(found.offset, found.end, not zeros[0], not zeros[1])
        if pending is not None and _fits(pending, window):
            pending = pending._replace(end=window.end)
            continue
        if pending is not None:
            yield pending
        for start in range(window.offset, window.end, WINDOW):
            pending = window._replace(offset=start, end=min(start + WINDOW, window.end))
            if pending.end < window.end:
                yield pending
    if pending is not None:
        yield pending


def _fits(window: Window, following: Window) -> bool:
    return (
        following.offset - window.end <= _GAP
        and following.end - window.offset <= WINDOW
        and following[2:] == window[2:]
    )


def _same_bytes(one: Extent, other: Extent) -> bool:
    """Whether both ranges lie in the same place of the same host file, as with overlays."""
    return (
        one.kind is Kind.DATA
        and other.kind is Kind.DATA
        and one.host_offset is not None
        and one.host_offset == other.host_offset
        and one.storage is not None
        and other.storage is not None
        and one.storage.identity is not None
        and one.storage.identity == other.storage.identity
    )
