"""A part of a disk as a disk of its own: what ``dd`` copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from imgtool import zeros
from imgtool.device import BlockDevice
from imgtool.extent import Extent, Kind
from imgtool.storage.base import Storage
from imgtool.units import align_up

#: Disks consist of whole sectors: what a part lacks to that is zeros.
SECTOR = 512


class PartDevice(BlockDevice):
    """``length`` bytes from ``start`` on of another disk, which closing it closes."""

    def __init__(self, whole: BlockDevice, start: int, length: int) -> None:
        self._whole = whole
        self._start = start
        self._length = length
        self.name = whole.name
        self.format = whole.format

    @property
    def size(self) -> int:
        return align_up(self._length, SECTOR)

    @property
    def children(self) -> Mapping[str, BlockDevice | Storage]:
        return {"whole": self._whole}

    def _read(self, offset: int, view: memoryview) -> None:
        inside = max(0, min(len(view), self._length - offset))
        if inside:
            self._whole.read_into(self._start + offset, view[:inside])
        zeros.fill(view[inside:])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        inside = max(0, min(end, self._length) - offset)
        for extent in self._whole.extents(self._start + offset, inside) if inside else ():
            yield extent._replace(offset=extent.offset - self._start)
        if inside < length:
            yield Extent(offset + inside, length - inside, Kind.UNALLOCATED)

    def close(self) -> None:
        self._whole.close()
