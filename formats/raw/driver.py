"""The raw driver: a window onto a file, the whole of it by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imgtool.device import Limits
from imgtool.errors import BadOption, ImageError
from imgtool.extent import Extent, Kind
from imgtool.flat import FlatDevice
from imgtool.storage.base import Storage
from imgtool.units import align_up

if TYPE_CHECKING:
    from imgtool.chain import Opener

#: qemu rounds the length of files up to whole sectors, and guests see sectors.
SECTOR = 512


class RawDevice(FlatDevice):
    """``size`` bytes from ``offset`` on in a file; None stands for all that follows.

    ``fresh_size`` is the size of a disk whose file has yet to grow to its length.
    """

    format = "raw"

    def __init__(
        self,
        storage: Storage,
        offset: int = 0,
        size: int | None = None,
        *,
        fresh_size: int | None = None,
    ) -> None:
        self._offset = offset
        self._fixed = offset != 0 or size is not None
        self.read_only = storage.read_only
        file_size = align_up(storage.size(), SECTOR)
        if offset > file_size:
            raise BadOption(
                f"The offset {offset} lies past the end of the file ({file_size} bytes)",
                filename=storage.name,
            )
        if size is not None and offset + size > file_size:
            raise BadOption(
                f"The size {size} from offset {offset} on is more than the file has "
                f"({file_size} bytes)",
                filename=storage.name,
            )
        own_size = file_size - offset if size is None else size
        super().__init__(storage, own_size if fresh_size is None else fresh_size)

    @property
    def limits(self) -> Limits:
        return Limits(alignment=self._storage.alignment)

    def _read(self, offset: int, view: memoryview) -> None:
        self._storage.read_into(self._offset + offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for found in self._storage.ranges(self._offset + offset, length):
            self._storage.account.spend(1)
            kind = Kind.DATA if found.is_data else Kind.ZERO
            yield Extent(
                found.offset - self._offset, found.length, kind, self._storage, found.offset
            )

    def _write(self, offset: int, view: memoryview) -> None:
        self._unsynced = True
        self._storage.write_at(self._offset + offset, view)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._unsynced = True
        self._storage.write_zeroes(self._offset + offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        self._unsynced = True
        self._storage.write_zeroes(self._offset + offset, length, unmap=True)

    def _reserve(self, offset: int, length: int) -> list[Extent]:
        self._unsynced = True
        return [Extent(offset, length, Kind.DATA, self._storage, self._offset + offset)]

    def _resize(self, size: int, preallocation: str) -> None:
        if self._fixed:
            raise BadOption(
                "A disk opened with an offset or a size cannot be resized", filename=self.name
            )
        if preallocation == "metadata":
            raise BadOption("Raw disks have no metadata to preallocate", filename=self.name)
        old = self._size
        self._unsynced = True
        self._storage.truncate(size)
        if self._storage.size() != size:
            raise ImageError("Cannot resize device files", filename=self.name)
        self._size = size
        if preallocation != "off" and size > old:
            try:
                self._storage.preallocate(old, size - old, full=preallocation == "full")
            except BaseException:
                # Nothing is there yet that would be lost.
                self._storage.truncate(old)
                self._size = old
                raise


def open_device(storage: Storage, opener: Opener, options: Mapping[str, Any]) -> RawDevice:
    """Open the file as a disk; ``offset`` and ``size`` (bytes) choose a part of it."""
    return RawDevice(storage, options.get("offset", 0), options.get("size"))
