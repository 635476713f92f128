"""The only threads of imgtool: a small pool whose queue is bounded by its callers."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")

#: More threads than this gain nothing: the work is bound by memory and by the host's disks.
MAX_WORKERS = 16


def default_workers() -> int:
    """One thread for each processor this process may use, and one to keep the disk busy."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    return min(available + 1, MAX_WORKERS)


class Workers:
    """Threads for calls that release the GIL. Leaving the context waits for what is running.

    There are ``count``, but not more than ``most``; None chooses by the processors.
    """

    def __init__(self, count: int | None = None, *, most: int = MAX_WORKERS) -> None:
        self.count = default_workers() if count is None else max(1, min(count, most))
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="imgtool")

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call ``function`` on a thread. Raises ``OSError`` if the host starts none."""
        try:
            return self._pool.submit(function, *arguments)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "The host starts no more threads") from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Stopped(Exception):
    """The work that a thread waits to go on with has been given up."""


class Turns:
    """Lets numbered pieces of work, done on any threads, through one by one and in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._stopped = False

    @contextlib.contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait for the turn of ``number``, which begins at 0, and hold it.

        Raises :class:`Stopped` if it does not come any more. If the work done in it fails, the
        turn is not passed on: :meth:`stop` is then to be called.
        """
        with self._changed:
            while self._next != number and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise Stopped
        yield
        with self._changed:
            self._next = number + 1
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Sleep, but not longer than until the work is given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)

    def stop(self) -> None:
        """Give up: nobody gets a turn any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
