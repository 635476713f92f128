"""The rules that hold whatever the bytes of an image are, and what watches over them.

* Nothing but :class:`ImageError` escapes, or an ``OSError`` that the storage itself raised.
* No execution takes more than :data:`MEMORY` bytes on top of what the process has.
* Opening takes at most :data:`OPEN_SECONDS` of the processor, a whole execution
  :data:`SECONDS`.
* Opening and ``info`` read no more than the file holds (:data:`INFO_READS`), ``check`` little
  more (:data:`CHECK_READS`), and reading a disk little more than is asked for
  (:data:`DISK_READS`).
* What is opened for reading is not written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from imgtool.errors import ImageError
from imgtool.storage.base import Storage
from tests.kit.faults import WrappedStorage

MiB = 1 << 20

MEMORY = 256 * MiB
OPEN_SECONDS = 2.0
#: Open, info, check, map and read, of the disk and of its first snapshots.
SECONDS = 20.0

#: What is read whatever the file's length is: heads and tails for probing, sectors of headers.
_SMALL = 64 << 10

#: How often opening and ``info`` together may read all of the file.
INFO_READS = 1
#: The same of ``check``, and the bytes beyond for tables that lie, unaligned, upon each other.
CHECK_READS = 3
CHECK_BEYOND = 16 * MiB
#: What is read of a disk, the file's bytes for the disk's; and the clusters beyond, for the table
#: that maps a range, and for what is encoded at its ends.
DISK_READS = 2
DISK_BEYOND = 3


class Broken(AssertionError):
    """A rule does not hold."""


class TooSlow(BaseException):
    """Time is up. Nothing that handles exceptions is to catch it."""


class WatchedStorage(WrappedStorage):
    """Counts the bytes that are read, and notes what the storage itself refuses."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.bytes_read = 0
        self.writes = 0
        self.refused: list[OSError] = []

    def read_into(self, offset: int, buffer: Any) -> int:
        with self._noting():
            found = super().read_into(offset, buffer)
        self.bytes_read += found
        return found

    def write_at(self, offset: int, data: Any) -> None:
        with self._noting():
            self.writes += 1
            super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._noting():
            self.writes += 1
            super().write_zeroes(offset, length, unmap=unmap)

    def truncate(self, size: int) -> None:
        with self._noting():
            self.writes += 1
            super().truncate(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        with self._noting():
            self.writes += 1
            super().preallocate(offset, length, full=full)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.refused.append(error)
            raise


def acceptable(error: BaseException, *storages: WatchedStorage) -> bool:
    """Whether ``error`` may escape; those that are not mistakes of imgtool's own are."""
    if isinstance(error, ImageError):
        return True
    return any(error is refused for storage in storages for refused in storage.refused)


@contextlib.contextmanager
def refusing(*storages: WatchedStorage) -> Iterator[list[BaseException]]:
    """Let what may escape pass, and note it; everything else goes on its way."""
    refusals: list[BaseException] = []
    try:
        yield refusals
    except (ImageError, OSError) as error:
        if not acceptable(error, *storages):
            raise
        refusals.append(error)


class Clock:
    """Measures seconds of this process's time, from when it is made."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def seconds(self) -> float:
        """The seconds so far."""
        return time.process_time() - self._start

    def within(self, seconds: float, what: str) -> None:
        """Raise :class:`Broken` if it has taken longer."""
        taken = self.seconds()
        if taken > seconds:
            raise Broken(f"{what} took {taken:.1f} s of the processor, more than {seconds}")


@contextlib.contextmanager
def time_limit(seconds: float = 3 * SECONDS) -> Iterator[None]:
    """Break off, with a traceback, what takes longer of the processor than anything may."""

    def up(signal_number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s of the processor")

    before = signal.signal(signal.SIGVTALRM, up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def memory_limit(limit: int = MEMORY) -> Iterator[None]:
    """Raise :class:`Broken` if the process has at any time had ``limit`` bytes more than now."""
    try:
        # Makes the high-water mark start anew.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield
        return
    before = status("VmRSS")
    yield
    peak = status("VmHWM") - before
    if peak > limit:
        raise Broken(f"took {peak / MiB:.0f} MiB of memory, more than {limit / MiB:.0f}")


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    descriptor = os.open("/proc/self/status", os.O_RDONLY)
    try:
        text = os.read(descriptor, 1 << 14).decode()
    finally:
        os.close(descriptor)
    start = text.index(field + ":") + len(field) + 1
    return int(text[start : text.index("kB", start)]) << 10


def read_at_most(
    storage: WatchedStorage, size: int, times: int, what: str, beyond: int = 0
) -> None:
    """Raise :class:`Broken` if more was read than all of the file, of ``size`` bytes, so often."""
    if storage.bytes_read > times * size + beyond + _SMALL:
        raise Broken(f"{what} read {storage.bytes_read} bytes of a file of {size}")
