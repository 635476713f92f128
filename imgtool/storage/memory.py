"""MemoryStorage: bytes in memory that behave as a host file does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from imgtool import zeros
from imgtool.errors import Closed, ReadOnly
from imgtool.storage.base import Storage
from imgtool.storage.bounds import check_offset, check_range

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class MemoryStorage(Storage):
    """A growable array of bytes. It has no holes, and is gone when it is closed and let go.

    It grows to ``limit`` bytes at most (4 GiB by default); beyond, ``OSError`` (ENOSPC) is raised.
    """

    def __init__(
        self,
        data: ReadableBuffer = b"",
        name: str = "<memory>",
        read_only: bool = False,
        *,
        limit: int = 4 << 30,
    ) -> None:
        self.name = name
        self.read_only = read_only
        self._limit = limit
        self._lock = threading.Lock()
        self._closed = False
        self._data = bytearray(data)

    @property
    def identity(self) -> Hashable | None:
        return ("memory", id(self))

    def getvalue(self) -> bytes:
        """Return a copy of all the bytes; also after :meth:`close`."""
        with self._lock:
            return bytes(self._data)

    def size(self) -> int:
        self._check_open()
        return len(self._data)

    def allocated(self) -> int:
        return self.size()

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        self._check_open()
        view = memoryview(buffer)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        check_offset(offset, self.name)
        with self._lock, memoryview(self._data) as data:
            part = data[offset : offset + len(view)]
            view[: len(part)] = part
            found = len(part)
            part.release()
        if found < len(view):
            zeros.fill(view[found:])
        return found

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data)
        end = self._check_write(offset, view.nbytes)
        if view.nbytes:
            with self._lock:
                self._grow(end)
                self._data[offset:end] = view.cast("B")

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = self._check_write(offset, length)
        if length:
            with self._lock:
                size = len(self._data)
                self._grow(end)
                inside = max(0, min(end, size) - offset)
                self._data[offset : offset + inside] = bytes(inside)

    def truncate(self, size: int) -> None:
        self._check_write(size, 0)
        with self._lock:
            self._grow(size)
            del self._data[size:]

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        if full:
            self.write_zeroes(offset, length)
            return
        end = self._check_write(offset, length)
        if length:
            with self._lock:
                self._grow(end)

    def flush(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._closed = True
        self.account.close()

    def _grow(self, size: int) -> None:
        missing = size - len(self._data)
        if missing > 0:
            if size > self._limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            self._data.extend(bytes(missing))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(filename=self.name)

    def _check_write(self, offset: int, length: int) -> int:
        self._check_open()
        if self.read_only:
            raise ReadOnly("The file is open read-only", filename=self.name)
        return check_range(offset, length, self.name)
