"""Telling how far an operation has come."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Called with the bytes done so far and the bytes in all; the last call has both equal. It is
#: called from the operation's own thread and may raise to break the operation off.
Progress = Callable[[int, int], None]


class Throttled:
    """A progress callback that passes on at most one call every ``interval`` seconds.

    The first call and the one that completes the operation are always passed on.
    """

    def __init__(self, report: Progress, interval: float = 0.1) -> None:
        self._report = report
        self._interval = interval
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + self._interval
            self._report(done, total)
