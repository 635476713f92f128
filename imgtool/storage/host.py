"""An open host file: positional I/O with whatever calls the platform has.

Each call is looked up when it is made: Linux has ``preadv``, every Unix has ``pread``, Windows
has neither and seeks under a lock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from imgtool.errors import Closed

Result = TypeVar("Result")

#: How often a call that is interrupted is made again: a host that never lets it through is broken.
_ATTEMPTS = 1000

#: The most bytes asked for in one system call. Linux stops a little short of 2 GiB by itself.
LARGEST_REQUEST = 1 << 30


def uninterrupted(call: Callable[..., Result], *arguments: object) -> Result:
    """Make a system call, again where a signal has interrupted it."""
    attempts = 0
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            attempts += 1
            if attempts > _ATTEMPTS:
                raise


class Descriptor:
    """A file descriptor, owned, that any number of threads may read and write by position.

    As soon as a descriptor is closed, its number may be that of another file. So it is used inside
    the context of the object alone, ``with descriptor as number``, which :meth:`close` waits for.
    One thread cannot enter it twice.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._position = threading.Lock()
        #: The threads that are using the number. Adding and discarding are atomic.
        self._users: set[int] = set()
        self._closed = False
        self._left = threading.Event()

    def __enter__(self) -> int:
        self._users.add(threading.get_ident())
        if self._closed:
            self.__exit__()
            raise Closed
        return self._number

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._users.discard(threading.get_ident())
        if self._closed:
            self._left.set()

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        """The number, for looking at the file. Raises :class:`Closed` once it is closed."""
        if self._closed:
            raise Closed
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
            with self as number:
                return uninterrupted(os.pread, number, length, offset)
        return b""

    def read_some(self, view: memoryview, offset: int) -> int:
        """Fill the front of ``view``, with one call; return how many bytes, 0 at the file's end."""
        part = view if len(view) <= LARGEST_REQUEST else view[:LARGEST_REQUEST]
        return uninterrupted(self._read_once, part, offset)

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of ``view`` at ``offset``."""
        done = 0
        while done < len(view):
            part = view[done : done + LARGEST_REQUEST]
            count = uninterrupted(self._write_once, part, offset + done)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count

    def seek(self, offset: int, whence: int) -> int:
        """``lseek``, kept apart from I/O that needs the position; returns the offset in bytes."""
        with self._position, self as number:
            return os.lseek(number, offset, whence)

    def truncate(self, size: int) -> None:
        """Set the file's length."""
        with self as number:
            uninterrupted(os.ftruncate, number, size)

    def sync(self) -> None:
        """Make what was written durable, down to the medium where the platform can ask for that."""
        with self as number:
            uninterrupted(_sync, number)

    def close(self) -> None:
        """Close the descriptor, once no other thread uses it. Closing twice is harmless."""
        with self._position:
            if self._closed:
                return
            self._closed = True
        # This thread is not using it: if it is among the users, it was interrupted on its way.
        while self._users - {threading.get_ident()}:
            self._left.wait()
            self._left.clear()
        os.close(self._number)

    def _read_once(self, part: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            with self as number:
                return os.preadv(number, [part], offset)
        if hasattr(os, "pread"):
            with self as number:
                data = os.pread(number, len(part), offset)
        else:
            with self._position, self as number:
                if offset >= os.lseek(number, 0, os.SEEK_END):
                    return 0  # no position may be further off than the largest file's end
                os.lseek(number, offset, os.SEEK_SET)
                data = os.read(number, len(part))
        part[: len(data)] = data
        return len(data)

    def _write_once(self, part: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            with self as number:
                return os.pwrite(number, part, offset)
        with self._position, self as number:
            os.lseek(number, offset, os.SEEK_SET)
            return os.write(number, part)


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
