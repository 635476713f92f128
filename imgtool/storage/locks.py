"""The locks by which QEMU and imgtool see that an image is in use.

Each permission has two bytes in the file: 100+i is held by whoever uses it, 200+i by whoever does
not share it. Both are read locks, which never wait for each other; a conflict is found by asking
who else holds the opposite byte. The locks belong to the open file description, so two opens in
one process conflict as two processes do.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

from imgtool.errors import InUse
from imgtool.storage.host import Descriptor

#: At most so many seconds pass before each further try of a claim that others were in the way of.
_PAUSES = (0.005, 0.01, 0.02)

_USED = 100
_UNSHARED = 200
_END = 300
_WRITE = 1
_NAMES = {0: "consistent read", 1: "write", 2: "write unchanged", 3: "resize"}

#: ``struct flock``: type, whence, start, length, process; padded as the C compiler does.
_FLOCK = struct.Struct("hhqqi0q")

#: How a file system says that it has no locks.
_CANNOT = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class UnlockedWarning(UserWarning):
    """An image was opened for writing without locks, because the host has none to offer."""


class Claim(NamedTuple):
    """What an open file uses and what it does not let others use, as permission numbers."""

    used: frozenset[int]
    unshared: frozenset[int]

    @property
    def held(self) -> frozenset[int]:
        """The bytes to hold."""
        return frozenset(_USED + i for i in self.used) | frozenset(
            _UNSHARED + i for i in self.unshared
        )


#: What readers and writers claim, and readers and writers that let others write meanwhile (-U).
READ = Claim(frozenset({0}), frozenset({1, 3}))
WRITE = Claim(frozenset({0, 1, 3}), frozenset({1, 3}))
SHARED_READ = READ._replace(unshared=frozenset())
SHARED_WRITE = WRITE._replace(unshared=frozenset())


class ImageLock:
    """The locks on one open file. They end when its descriptor is closed."""

    def __init__(self, file: Descriptor, name: str) -> None:
        self._file = file
        self._name = name
        self._held: frozenset[int] = frozenset()

    def claim(self, wanted: Claim) -> None:
        """Hold exactly what ``wanted`` says: take, raise or lower the locks.

        Raises :class:`InUse`, and keeps what was held before, if anybody's claim conflicts. Where
        the host has no such locks there is one :class:`UnlockedWarning` for the first writer.

        Of two who claim at the same moment each sees the other, and both would have to go. So a
        claim is tried again, a few times within some hundredths of a second, before it is given up.
        """
        calls = system_locks()
        try:
            if calls is None:
                raise OSError(errno.ENOSYS, "no open file description locks")
            for pause in _PAUSES:
                with contextlib.suppress(InUse):
                    return self._claim(calls, wanted)
                import random  # takes milliseconds that most runs need not spend

                time.sleep(random.uniform(0, pause))
            self._claim(calls, wanted)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            if _WRITE in wanted.used:
                _warn(self._name)

    def _claim(self, calls: _Calls, wanted: Claim) -> None:
        before = self._held
        try:
            self._take(calls, wanted)
            self._test(calls, wanted)
            self._drop(calls, before - wanted.held)
        except InUse:
            self._drop(calls, self._held - before)
            raise

    def _take(self, calls: _Calls, wanted: Claim) -> None:
        for byte in sorted(wanted.held - self._held):
            try:
                calls.set(self._file.fileno(), byte, calls.read)
            except (BlockingIOError, PermissionError):
                raise self._in_use(wanted, byte % 100, byte >= _UNSHARED) from None
            self._held |= {byte}

    def _test(self, calls: _Calls, wanted: Claim) -> None:
        if not calls.is_held(self._file.fileno(), _USED, _END - _USED):
            return  # mostly nobody else has the file open, and one question tells
        for permission in sorted(wanted.used):
            if calls.is_held(self._file.fileno(), _UNSHARED + permission, 1):
                raise self._in_use(wanted, permission, False)
        for permission in sorted(wanted.unshared):
            if calls.is_held(self._file.fileno(), _USED + permission, 1):
                raise self._in_use(wanted, permission, True)

    def _drop(self, calls: _Calls, unwanted: frozenset[int]) -> None:
        for byte in sorted(unwanted):
            calls.set(self._file.fileno(), byte, calls.none)
        self._held -= unwanted

    def _in_use(self, wanted: Claim, permission: int, unshared: bool) -> InUse:
        shared = "shared " if unshared else ""
        hint = "" if _WRITE in wanted.used else " (-U / --force-share reads it all the same)"
        return InUse(
            f'Failed to get {shared}"{_NAMES[permission]}" lock: is another process using the '
            f"image?{hint}",
            filename=self._name,
        )


class _Calls(NamedTuple):
    """The lock calls of a platform: one locks a byte, one asks if others lock any of a range."""

    set: Callable[[int, int, int], None]
    is_held: Callable[[int, int, int], bool]
    read: int
    none: int


def system_locks() -> _Calls | None:
    """Open file description locks, or None where Python has none: on macOS and Windows."""
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    def set_lock(number: int, byte: int, kind: int) -> None:
        fcntl.fcntl(number, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, byte, 1, 0))

    def is_held(number: int, start: int, length: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0)
        answer = fcntl.fcntl(number, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    return _Calls(set_lock, is_held, fcntl.F_RDLCK, fcntl.F_UNLCK)


_warned = False


def _warn(name: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"'{name}' can't be locked on this host: nothing keeps other programs from writing "
            "images that imgtool writes",
            UnlockedWarning,
            stacklevel=5,
        )
