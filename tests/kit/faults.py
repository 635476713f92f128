"""Storages that watch what is done to another storage, or make it fail."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from imgtool.storage.base import HostRange, Storage


class WrappedStorage(Storage):
    """Passes everything on to ``inner``."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.name = inner.name
        self.read_only = inner.read_only
        self.alignment = inner.alignment

    @property
    def created(self) -> bool:
        """Whether the file was brought into being, for those who make files."""
        return bool(getattr(self.inner, "created", False))

    def duplicate(self) -> io.FileIO | None:
        return self.inner.duplicate()

    @property
    def identity(self) -> Hashable | None:
        return self.inner.identity

    @property
    def directory(self) -> str | None:
        return self.inner.directory

    def size(self) -> int:
        return self.inner.size()

    def allocated(self) -> int:
        return self.inner.allocated()

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        return self.inner.ranges(offset, length)

    def read_into(self, offset: int, buffer: Any) -> int:
        return self.inner.read_into(offset, buffer)

    def write_at(self, offset: int, data: Any) -> None:
        self.inner.write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.inner.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self.inner.discard(offset, length)

    def truncate(self, size: int) -> None:
        self.inner.truncate(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        self.inner.preallocate(offset, length, full=full)

    def flush(self) -> None:
        self.inner.flush()

    def close(self) -> None:
        self.inner.close()


class Event(NamedTuple):
    """Something done to a storage: ``write``, ``zero``, ``discard``, ``truncate`` and so on.

    ``file`` is the name that the recorder was given; offset and length are bytes.
    """

    file: str
    kind: str
    offset: int = 0
    length: int = 0


class RecordingStorage(WrappedStorage):
    """Notes, in ``log``, everything that changes ``inner`` or makes it durable.

    Several storages may share a log, which then tells their common order.
    """

    def __init__(self, inner: Storage, log: list[Event], file: str = "image") -> None:
        super().__init__(inner)
        self.log = log
        self._file = file

    def _note(self, kind: str, offset: int = 0, length: int = 0) -> None:
        self.log.append(Event(self._file, kind, offset, length))

    def write_at(self, offset: int, data: Any) -> None:
        self._note("write", offset, memoryview(data).nbytes)
        super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._note("zero", offset, length)
        super().write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset, length)
        super().discard(offset, length)

    def truncate(self, size: int) -> None:
        self._note("truncate", size)
        super().truncate(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        self._note("preallocate", offset, length)
        super().preallocate(offset, length, full=full)

    def flush(self) -> None:
        self._note("flush")
        super().flush()


class FailingStorage(WrappedStorage):
    """Fails with ``OSError`` where ``fails`` says so.

    It is called with the kind of what is to be done (``read``, ``write``, ``zero``, ``truncate``,
    ``preallocate``, ``flush``), the offset and the length, and returns an errno or 0. ``calls``
    counts what was asked for, by kind.
    """

    def __init__(self, inner: Storage, fails: Callable[[str, int, int], int]) -> None:
        super().__init__(inner)
        self._fails = fails
        self._lock = threading.Lock()
        self.calls: dict[str, int] = {}

    def _ask(self, kind: str, offset: int = 0, length: int = 0) -> None:
        with self._lock:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            number = self._fails(kind, offset, length)
        if number:
            raise OSError(number, os.strerror(number), self.name)

    def read_into(self, offset: int, buffer: Any) -> int:
        self._ask("read", offset, memoryview(buffer).nbytes)
        return super().read_into(offset, buffer)

    def write_at(self, offset: int, data: Any) -> None:
        self._ask("write", offset, memoryview(data).nbytes)
        super().write_at(offset, data)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._ask("zero", offset, length)
        super().write_zeroes(offset, length, unmap=unmap)

    def truncate(self, size: int) -> None:
        self._ask("truncate", size)
        super().truncate(size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        self._ask("preallocate", offset, length)
        super().preallocate(offset, length, full=full)

    def flush(self) -> None:
        self._ask("flush")
        super().flush()


def bad_ranges(
    *ranges: tuple[int, int], kind: str = "read", number: int = errno.EIO
) -> Callable[[str, int, int], int]:
    """For :class:`FailingStorage`: what touches one of the ``(offset, length)`` ranges fails."""

    def fails(what: str, offset: int, length: int) -> int:
        touched = any(offset < start + count and start < offset + length for start, count in ranges)
        return number if what == kind and touched else 0

    return fails


def nth(
    wanted: int, *kinds: str, number: int = errno.EIO, for_ever: bool = False
) -> Callable[[str, int, int], int]:
    """For :class:`FailingStorage`: the call number ``wanted`` (from 0) of these kinds fails.

    With ``for_ever`` every later one does as well.
    """
    seen = -1

    def fails(what: str, offset: int, length: int) -> int:
        nonlocal seen
        if what not in kinds:
            return 0
        seen += 1
        return number if seen == wanted or (for_ever and seen > wanted) else 0

    return fails
