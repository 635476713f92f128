"""The recording store: files in memory that remember what a loss of power could leave of them.

Every change is logged as the bytes that the sectors it touches hold afterwards: a disk writes whole
sectors, and whoever changes part of one has the rest from the cache. New names are changes of the
directory. Each fsync is logged with its
place in the code, the *barrier* that it is part of, so that one can be taken away for a trial.
"""

from __future__ import annotations

import enum
import errno
import linecache
import os
import re
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

from imgtool.chain import Opener, OpenPolicy, Trust
from imgtool.storage.base import Storage
from imgtool.storage.directory import Place
from imgtool.storage.memory import MemoryStorage
from imgtool.units import align_down, align_up
from tests.kit.faults import WrappedStorage

SECTOR = 512

#: What names are changes of: the directory that all files lie in.
DIRECTORY = "/"

#: Names of functions that only pass a flush on: the barrier is whoever called them.
_PASSING = frozenset({"_barrier", "_flush"})

#: Modules of storages, which pass it on as well.
_STORAGES = ("imgtool.storage.", "imgtool.formats.raw.short")

_WAITING = re.compile(r"(?<!def )(flush|_barrier|write_header|switch_header|finish|close)\(")


class Kind(enum.Enum):
    """What can happen to a file."""

    WRITE = "write"
    ZERO = "zero"
    PUNCH = "punch"
    LENGTH = "length"
    RENAME = "rename"
    SYNC = "sync"


class Change(NamedTuple):
    """Something done to ``file``.

    ``data`` is what the sectors from ``offset`` on hold afterwards; for LENGTH, ``offset`` is the
    new length; for RENAME, ``data`` has the old name and the new one. ``barrier`` names the place
    in the code that a SYNC is part of.
    """

    file: str
    kind: Kind
    offset: int = 0
    data: bytes = b""
    barrier: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """The old name and the new one, of a RENAME."""
        old, new = self.data.decode().split("\0")
        return old, new

    def __str__(self) -> str:
        if self.kind is Kind.SYNC:
            return f"{self.file}: sync ({self.barrier})"
        if self.kind is Kind.RENAME:
            return "{}: rename to {}".format(*self.names)
        return f"{self.file}: {self.kind.value} {self.offset:#x}+{len(self.data):#x}"


@dataclass
class Log:
    """What happened to the files of one recording, in order."""

    changes: list[Change] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    #: Called before anything is done to a file, of whatever thread.
    pause: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.changes)


class Recorder(WrappedStorage):
    """A file in memory that logs what is done to it. Closing it leaves it as it is."""

    created = False
    #: A block device keeps its length.
    fixed = False

    def __init__(self, log: Log, file: str, data: bytes = b"") -> None:
        self._memory = MemoryStorage(data, f"/disks/{file}")
        super().__init__(self._memory)
        self.file = file
        self._log = log

    @property
    def directory(self) -> str | None:
        return "/disks"

    @property
    def identity(self) -> Hashable | None:
        return ("recorder", self.file)

    def getvalue(self) -> bytes:
        """All the bytes as they are in the cache."""
        return self._memory.getvalue()

    def _changed(self, kind: Kind, offset: int, length: int) -> None:
        start = align_down(offset, SECTOR)
        end = min(align_up(offset + length, SECTOR), self.inner.size())
        if start < end:
            data = self.inner.read_at(start, end - start)
            self._log.changes.append(Change(self.file, kind, start, data))

    def write_at(self, offset: int, data: Any) -> None:
        self._log.pause()
        with self._log.lock:
            super().write_at(offset, data)
            self._changed(Kind.WRITE, offset, memoryview(data).nbytes)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._log.pause()
        with self._log.lock:
            super().write_zeroes(offset, length, unmap=unmap)
            self._changed(Kind.ZERO, offset, length)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, as a host file does."""
        self._log.pause()
        with self._log.lock:
            end = min(offset + length, self.inner.size())
            if offset < end:
                self.inner.write_zeroes(offset, end - offset)
                self._changed(Kind.PUNCH, offset, end - offset)

    def truncate(self, size: int) -> None:
        self._log.pause()
        with self._log.lock:
            if self.fixed:
                if size > self.inner.size():
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            elif size != self.inner.size():
                super().truncate(size)
                self._log.changes.append(Change(self.file, Kind.LENGTH, size))

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        with self._log.lock:
            if full:
                self.write_zeroes(offset, length)
            elif offset + length > self.inner.size():
                self.truncate(offset + length)

    def flush(self) -> None:
        self._log.pause()
        with self._log.lock:
            barrier = _barrier_here() + (" [data]" if self.file == "data" else "")
            self._log.changes.append(Change(self.file, Kind.SYNC, barrier=barrier))

    def close(self) -> None:
        """Leave the file to whoever opens it next."""


class Directory:
    """The directory of the files of a recording. A file is logged under the name it began with."""

    def __init__(self, log: Log, files: dict[str, Recorder]) -> None:
        self._log, self._files = log, files

    def replace(self, old: str, new: str) -> None:
        """Give a file the name, and the place, of another."""
        old, new = (path.rsplit("/", 1)[-1] for path in (old, new))
        self._files[new] = self._files.pop(old)
        self._log.changes.append(Change(DIRECTORY, Kind.RENAME, data=f"{old}\0{new}".encode()))

    def flush(self, path: str) -> None:
        """Make names durable."""
        self._log.changes.append(Change(DIRECTORY, Kind.SYNC, barrier=_barrier_here()))


@dataclass(frozen=True)
class RecordingOpener(Opener):
    """Opens the files of a recording (or of one state of them) by their names."""

    #: There are no directories that names could be followed from.
    policy: OpenPolicy = field(default_factory=lambda: OpenPolicy(Trust.ANY))
    files: Mapping[str, Storage] = field(default_factory=dict)

    def _file_at(self, path: str, place: Place | None) -> Storage:
        """The file that ``path`` names."""
        if place is not None:
            place.close()
        try:
            return self.files[path.rsplit("/", 1)[-1]]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None


def _barrier_here() -> str:
    """The place in the engine that waits for the disk: module, function, and which one there."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        engine = module.startswith("imgtool.") and not module.startswith(_STORAGES)
        if engine and frame.f_code.co_name not in _PASSING:
            name = f"{module.removeprefix('imgtool.').removeprefix('formats.')}"
            return f"{name}.{frame.f_code.co_name}:{_number(frame)}"
        frame = frame.f_back
    return "elsewhere"


def _number(frame: FrameType) -> int:
    """How many lines of the function, up to where it is now, wait for the disk."""
    code = frame.f_code
    lines = range(code.co_firstlineno, frame.f_lineno + 1)
    return sum(bool(_WAITING.search(linecache.getline(code.co_filename, line))) for line in lines)
