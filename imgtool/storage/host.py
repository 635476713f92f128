"""An open host file: positional I/O with whatever calls the platform has.

Each call is looked up when it is made: Linux has ``preadv``, every Unix has ``pread``, Windows
has neither and seeks under a lock.
"""

from __future__ import annotations

import errno
import os
import threading

#: The most bytes asked for in one system call. Linux stops a little short of 2 GiB by itself.
LARGEST_REQUEST = 1 << 30


class Descriptor:
    """A file descriptor, owned, that any number of threads may read and write by position."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._position = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._number < 0

    def fileno(self) -> int:
        """The descriptor's number. Raises ``ValueError`` once it is closed."""
        if self._number < 0:
            raise ValueError("I/O operation on closed file")
        return self._number

    def read(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return how many bytes, fewer only at the file's end."""
        done = self.read_some(view, offset)
        while 0 < done < len(view):
            count = self.read_some(view[done:], offset + done)
            if not count:
                break
            done += count
        return done

    def read_bytes(self, offset: int, length: int) -> bytes:
        """Return bytes from ``offset`` on, without a copy; fewer than ``length`` mean nothing."""
        if hasattr(os, "pread") and length <= LARGEST_REQUEST:
            return os.pread(self.fileno(), length, offset)
        return b""

    def read_some(self, view: memoryview, offset: int) -> int:
        """Fill the front of ``view``, with one call; return how many bytes, 0 at the file's end."""
        part = view if len(view) <= LARGEST_REQUEST else view[:LARGEST_REQUEST]
        while True:
            try:
                return self._read_once(part, offset)
            except InterruptedError:
                continue

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of ``view`` at ``offset``."""
        done = 0
        while done < len(view):
            part = view[done : done + LARGEST_REQUEST]
            try:
                count = self._write_once(part, offset + done)
            except InterruptedError:
                continue
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count

    def seek(self, offset: int, whence: int) -> int:
        """``lseek``, kept apart from I/O that needs the position; returns the offset in bytes."""
        with self._position:
            return os.lseek(self.fileno(), offset, whence)

    def sync(self) -> None:
        """Make what was written durable, down to the medium where the platform can ask for that."""
        while True:
            try:
                return _sync(self.fileno())
            except InterruptedError:
                continue

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless."""
        with self._position:
            number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def _read_once(self, part: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.fileno(), [part], offset)
        if hasattr(os, "pread"):
            data = os.pread(self.fileno(), len(part), offset)
        else:
            with self._position:
                if offset >= os.lseek(self.fileno(), 0, os.SEEK_END):
                    return 0  # no position may be further off than the largest file's end
                os.lseek(self.fileno(), offset, os.SEEK_SET)
                data = os.read(self.fileno(), len(part))
        part[: len(data)] = data
        return len(data)

    def _write_once(self, part: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self.fileno(), part, offset)
        with self._position:
            os.lseek(self.fileno(), offset, os.SEEK_SET)
            return os.write(self.fileno(), part)


def _sync(number: int) -> None:
    if hasattr(os, "fdatasync"):
        return os.fdatasync(number)
    if _full_sync(number):
        return None
    return os.fsync(number)


def _full_sync(number: int) -> bool:
    """Flush the drive's cache too, which has its own call on macOS; return if that worked."""
    try:
        import fcntl
    except ImportError:
        return False
    command = getattr(fcntl, "F_FULLFSYNC", None)
    if command is None:
        return False
    try:
        fcntl.fcntl(number, command)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
            return False
        raise
    return True
