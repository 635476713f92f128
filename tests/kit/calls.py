"""The system calls with which storages work, made to fail, stop short or be interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imgtool.storage import holes

#: The kinds of the calls, by their names in :mod:`os`.
_CALLS = {
    "open": "open",
    "preadv": "read",
    "pread": "read",
    "pwrite": "write",
    "ftruncate": "truncate",
    "posix_fallocate": "reserve",
    "fdatasync": "sync",
    "copy_file_range": "copy",
    "lseek": "seek",
    "replace": "replace",
    "close": "close",
}

#: What each fault befalls.
_CHANGES = frozenset({"write", "truncate", "reserve", "allocate", "sync", "copy", "replace"})
FAULTS: dict[str, frozenset[str]] = {
    "EIO": _CHANGES | {"open", "read", "seek", "close"},
    "ENOSPC": _CHANGES | {"open", "close"},
    "torn": frozenset({"write"}),
    "short": frozenset({"read", "write", "copy"}),
    "EINTR": frozenset({"read", "write", "truncate", "allocate", "sync", "copy"}),
}


class FaultyCalls:
    """Counts the calls on files below ``folder``, and lets the one number ``at`` go wrong.

    ``fault`` is one of ``FAULTS``; only calls of the kinds that it befalls, and of ``kinds`` if
    those are given, are counted. ``torn`` writes whole sectors of the first half and then fails;
    ``short`` does the first half and says so. With ``for_ever`` every later call goes wrong, too.
    ``hit`` lists the kinds of those that did. A call that fails does nothing, but for close, which
    does close.
    """

    def __init__(
        self,
        folder: Path,
        fault: str,
        at: int | None = None,
        *,
        for_ever: bool = False,
        kinds: frozenset[str] | None = None,
    ) -> None:
        self.count = 0
        self.hit: list[str] = []
        self._folder = os.path.realpath(folder)
        self._fault = fault
        self._kinds = FAULTS[fault] if kinds is None else FAULTS[fault] & kinds
        self._at = at
        self._for_ever = for_ever
        self._lock = threading.Lock()
        self._ours: dict[int, bool] = {}

    def _strikes(self, kind: str) -> bool:
        if kind not in self._kinds:
            return False
        with self._lock:
            number, self.count = self.count, self.count + 1
            struck = self._at is not None and (
                number == self._at or (self._for_ever and number > self._at)
            )
            if struck:
                self.hit.append(kind)
            return struck

    def _error(self) -> OSError:
        number = {"ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR}.get(self._fault, errno.EIO)
        return OSError(number, os.strerror(number))

    def __call__(self, kind: str, real: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Make one call, or let it go wrong."""
        if kind == "open":
            return self._open(real, *args, **named)
        ours = self._ours.get(args[0]) if kind != "replace" else True
        if ours is None:
            return real(*args, **named)
        if kind == "close":
            self._ours.pop(args[0])
            real(*args)
            if ours and self._strikes(kind):
                raise self._error()
            return None
        if not self._strikes(kind):
            return real(*args, **named)
        if self._fault == "short":
            return self._half(kind, real, *args)
        if self._fault == "torn":
            number, data, offset = args
            half = (offset + len(data) // 2) // 512 * 512 - offset
            if half > 0:
                real(number, data[:half], offset)
        raise self._error()

    def _half(self, kind: str, real: Callable[..., Any], *args: Any) -> Any:
        if kind == "read":
            number, wanted, offset = args
            if isinstance(wanted, int):
                return real(number, -(-wanted // 2), offset)
            (view,) = wanted
            return real(number, [view[: -(-len(view) // 2)]], offset)
        if kind == "write":
            number, data, offset = args
            return int(real(number, data[: -(-len(data) // 2)], offset))
        source, target, length, *offsets = args
        return int(real(source, target, -(-length // 2), *offsets))

    def _open(
        self, real: Callable[..., int], path: Any, flags: int, *rest: Any, **named: Any
    ) -> int:
        name = os.fspath(path)
        inside = isinstance(name, str) and os.path.realpath(name).startswith(self._folder)
        if not inside:
            return real(path, flags, *rest, **named)
        makes = flags & os.O_CREAT
        if (self._fault != "ENOSPC" or makes) and self._strikes("open"):
            error = self._error()
            error.filename = name
            raise error
        number = real(path, flags, *rest, **named)
        self._ours[number] = bool(flags & (os.O_WRONLY | os.O_RDWR))
        return number

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let every call go through this object."""
        real = {name: getattr(os, name) for name in _CALLS}
        allocate = holes.system_fallocate

        def through(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **named: self(kind, call, *args, **named)

        def find_allocate() -> Callable[[int, int, int, int], int] | None:
            found = allocate()
            if found is None:
                return None

            def call(*args: int) -> int:
                try:
                    return int(self("allocate", found, *args))
                except OSError as error:
                    return error.errno or errno.EIO

            return call

        for name, kind in _CALLS.items():
            setattr(os, name, through(kind, real[name]))
        holes.system_fallocate = find_allocate  # type: ignore[assignment]
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)
            holes.system_fallocate = allocate
