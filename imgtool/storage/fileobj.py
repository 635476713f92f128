"""FileObjectStorage: any binary file object that can seek."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Hashable
from typing import IO, TYPE_CHECKING, cast

from imgtool import zeros
from imgtool.errors import Closed, ImageError, ReadOnly
from imgtool.storage.base import Storage
from imgtool.storage.bounds import check_offset, check_range, zero_pieces

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class FileObjectStorage(Storage):
    """A binary file object with ``seek`` and ``read``, and ``write`` if it is to be written.

    Threads take turns, since the object has one position, and whoever else moves that position
    meanwhile spoils it. The object stays open when the storage is closed, unless it is ``owned``.
    It takes no locks and knows no holes: all of it is data. The size of an object that is not
    writable is taken not to change.

    Raises :class:`ImageError` if the object can't seek, and ``TypeError`` if it holds text or is no
    file object. One that does not wait for its bytes (``read`` gives None) makes reads raise
    ``BlockingIOError``. As with a file, a flush that fails is final: every later write and flush
    raises the same error.
    """

    def __init__(self, fileobj: IO[bytes], name: str | None = None, *, owned: bool = False) -> None:
        if isinstance(cast(object, fileobj), io.TextIOBase):
            raise TypeError("an image is read from a file object opened in binary mode")
        if not hasattr(fileobj, "read"):
            raise TypeError(
                "an image is a path (str or os.PathLike), a binary file object or a Storage, "
                f"not {type(fileobj).__name__}"
            )
        given = getattr(fileobj, "name", None)
        self.name = name or (given if isinstance(given, str) else "<file object>")
        if not _allows(fileobj, "seekable", "seek"):
            raise ImageError(
                "The file object can't seek: read it into an io.BytesIO first", filename=self.name
            )
        self.read_only = not _allows(fileobj, "writable", "write")
        self._fileobj = fileobj
        self._owned = owned
        self._lock = threading.Lock()
        self._closed = False
        self._failure: OSError | None = None
        self._fixed_size: int | None = None

    @property
    def identity(self) -> Hashable | None:
        number = self._number()
        if number is None:
            return ("object", id(self._fileobj))
        status = os.fstat(number)
        return (status.st_dev, status.st_ino)

    def size(self) -> int:
        with self._lock:
            self._check_open()
            return self._size()

    def allocated(self) -> int:
        return self.size()

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        with self._lock:
            self._check_open()
            if not view.nbytes:
                return 0
            view = view.cast("B")
            check_offset(offset, self.name)
            # Past its end not every object can seek.
            found = self._read(view[: max(0, self._size() - offset)], offset)
        if found < len(view):
            zeros.fill(view[found:])
        return found

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data)
        with self._lock:
            self._check_write(offset, view.nbytes)
            if view.nbytes:
                self._write(view.cast("B"), offset)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._lock:
            end = self._check_write(offset, length)
            if not length:
                return
            size = self._size()
            if end > size:
                self._set_size(end)
            self._write_zeroes(offset, min(end, size) - offset)

    def truncate(self, size: int) -> None:
        with self._lock:
            self._check_write(size, 0)
            self._set_size(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        """Write zeros past the end; what lies before it is taken to be there already."""
        with self._lock:
            end = self._check_write(offset, length)
            start = offset if full else max(offset, self._size())
            if length:
                self._write_zeroes(start, end - start)

    def flush(self) -> None:
        """Flush the object, and its descriptor (fsync) if it has one."""
        with self._lock:
            self._check_open()
            if self.read_only:
                return
            self._check_failure()
            try:
                if hasattr(self._fileobj, "flush"):
                    self._fileobj.flush()
                number = self._number()
                if number is not None:
                    os.fsync(number)
            except OSError as error:
                self._failure = error
                raise

    def close(self) -> None:
        self.account.close()
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._owned:
                    self._fileobj.close()

    def _read(self, view: memoryview, offset: int) -> int:
        if not view:
            return 0
        self._fileobj.seek(offset)
        done = 0
        while done < len(view):
            data = cast("bytes | None", self._fileobj.read(len(view) - done))
            if data is None:
                raise BlockingIOError(
                    errno.EAGAIN, "the file object is set not to wait for its bytes", self.name
                )
            if not data:
                break
            view[done : done + len(data)] = data
            done += len(data)
        return done

    def _write(self, view: memoryview, offset: int) -> None:
        self._fileobj.seek(offset)
        done = 0
        while done < len(view):
            count = self._fileobj.write(view[done:])
            if not count:
                raise OSError(errno.EIO, "the file object takes no more bytes", self.name)
            done += count

    def _write_zeroes(self, offset: int, length: int) -> None:
        for start, piece in zero_pieces(offset, length):
            self._write(piece, start)

    def _size(self) -> int:
        if not self.read_only:
            return self._fileobj.seek(0, io.SEEK_END)
        # To find the end of a compressed file object is to decompress it all: once will do.
        if self._fixed_size is None:
            self._fixed_size = self._fileobj.seek(0, io.SEEK_END)
        return self._fixed_size

    def _set_size(self, size: int) -> None:
        self._fileobj.truncate(size)
        # Some objects (io.BytesIO) only ever become shorter that way.
        if self._size() < size:
            self._write(memoryview(b"\0"), size - 1)

    def _number(self) -> int | None:
        try:
            return self._fileobj.fileno()
        except (AttributeError, OSError, ValueError):
            return None

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(filename=self.name)

    def _check_write(self, offset: int, length: int) -> int:
        self._check_open()
        if self.read_only:
            raise ReadOnly("The file object is not open for writing", filename=self.name)
        self._check_failure()
        return check_range(offset, length, self.name)

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise OSError(self._failure.errno, self._failure.strerror, self.name)


def _allows(fileobj: IO[bytes], question: str, method: str) -> bool:
    """Ask a file object if it can seek or write; one that has no such question just has to try."""
    ask = getattr(fileobj, question, None)
    return bool(ask()) if ask is not None else hasattr(fileobj, method)
