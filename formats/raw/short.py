"""A file that lacks its last sector until it is complete, so that its length tells."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from imgtool.formats.raw.driver import SECTOR
from imgtool.storage.base import HostRange, Storage
from imgtool.storage.bounds import check_range

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class ShortStorage(Storage):
    """Passes everything on to ``inner``, but for the last sector of its ``size`` bytes to be.

    That one is kept in memory until :meth:`complete`. ``size`` is a multiple of a sector.
    """

    read_only = False

    def __init__(self, inner: Storage, size: int) -> None:
        self._inner = inner
        self.name = inner.name
        self.alignment = inner.alignment
        self._end = size - SECTOR
        self._last = bytearray(SECTOR)
        self._complete = False
        self._lock = threading.Lock()

    def complete(self) -> None:
        """Write the last sector. All that lies before it is durable."""
        self._complete = True
        if any(self._last):
            self._inner.write_at(self._end, self._last)

    @property
    def identity(self) -> Hashable | None:
        return self._inner.identity

    @property
    def directory(self) -> str | None:
        return self._inner.directory

    def size(self) -> int:
        return self._inner.size()

    def allocated(self) -> int:
        return self._inner.allocated()

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        return self._inner.ranges(offset, length)

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        found = self._inner.read_into(offset, view)
        start = max(0, self._end - offset)
        if not self._complete and start < len(view):
            skip = offset + start - self._end
            with self._lock:
                part = self._last[skip : skip + len(view) - start]
            view[start : start + len(part)] = part
        return found

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        end = check_range(offset, len(view), self.name)
        inside = len(view) if self._complete else max(0, min(end, self._end) - offset)
        if inside:
            self._inner.write_at(offset, view[:inside])
        if inside < len(view):
            skip = offset + inside - self._end
            with self._lock:
                self._last[skip : skip + len(view) - inside] = view[inside:]

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = check_range(offset, length, self.name)
        inside = length if self._complete else max(0, min(end, self._end) - offset)
        if inside:
            self._inner.write_zeroes(offset, inside, unmap=unmap)
        if inside < length:
            self.write_at(offset + inside, bytes(length - inside))

    def discard(self, offset: int, length: int) -> None:
        self._inner.discard(offset, length)

    def truncate(self, size: int) -> None:
        self._inner.truncate(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        """Reserve the range but for the last sector, which comes with the rest of its block."""
        end = check_range(offset, length, self.name)
        inside = length if self._complete else max(0, min(end, self._end) - offset)
        if inside:
            self._inner.preallocate(offset, inside, full=full)

    def flush(self) -> None:
        self._inner.flush()

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
        inside = length if self._complete else max(0, min(offset + length, self._end) - offset)
        return self._inner.copy_from(source, source_offset, offset, inside) if inside else 0

    def share_from(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        inside = offset + length <= self._end or self._complete
        return inside and self._inner.share_from(source, source_offset, offset, length)

    def close(self) -> None:
        self._inner.close()
