"""Threads that take turns as a seed says, so that what they do together can be had again.

Only one runs at a time. It may be another's turn at each :meth:`Scheduler.pause`, and wherever one
would wait: the locks of what is made inside :meth:`Scheduler.locks` know of the turns.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from unittest import mock


class Deadlock(Exception):
    """Everybody waits for somebody else."""


class _Turn:
    """One thread: whether it can go on, and what it waits with until it is its turn."""

    def __init__(self) -> None:
        self.signal = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True


class Scheduler:
    """Runs functions on threads, one at a time."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._turns: dict[int, _Turn] = {}
        self._done = threading.Semaphore(0)
        self._failures: list[BaseException] = []

    def run(self, functions: Sequence[Callable[[], None]]) -> None:
        """Run the functions beside each other until all have returned; raises what one raised."""
        begun = threading.Semaphore(0)
        threads = [
            threading.Thread(target=self._work, args=(function, begun), daemon=True)
            for function in functions
        ]
        for thread in threads:
            thread.start()
            begun.acquire()
        self._next().signal.release()
        self._done.acquire()
        if self._failures:
            raise self._failures[0]
        for thread in threads:
            thread.join()

    def _work(self, function: Callable[[], None], begun: threading.Semaphore) -> None:
        turn = self._turns[threading.get_ident()] = _Turn()
        begun.release()
        turn.signal.acquire()
        try:
            function()
            del self._turns[threading.get_ident()]
            if self._turns:
                self._next().signal.release()
        except BaseException as error:
            # The others stay where they are.
            self._failures.append(error)
            self._turns.clear()
        if not self._turns:
            self._done.release()

    def _next(self) -> _Turn:
        able = [turn for turn in self._turns.values() if turn.ready()]
        if not able:
            raise Deadlock
        return self._chance.choice(able)

    def pause(self) -> None:
        """Perhaps it is another's turn."""
        self.wait(lambda: True)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let others have their turns until ``ready`` says so, and it is this thread's again."""
        turn = self._turns.get(threading.get_ident())
        if turn is None:
            # It is not one of those that take turns, and runs while none of them does.
            if not ready():
                raise Deadlock
            return
        turn.ready = ready
        following = self._next()
        if following is not turn:
            following.signal.release()
            turn.signal.acquire()
        turn.ready = lambda: True

    @contextlib.contextmanager
    def locks(self) -> Iterator[None]:
        """What is made meanwhile gets locks that know of the turns."""
        with (
            mock.patch.object(threading, "Lock", partial(_Lock, self)),
            mock.patch.object(threading, "RLock", partial(_Lock, self)),
            mock.patch.object(threading, "Condition", partial(_Condition, self)),
        ):
            yield


class _Lock:
    """A lock that its holder may take again."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._owner = self._count = 0

    def acquire(self) -> bool:
        """Take it; the turn goes to others for as long as one of them has it."""
        me = threading.get_ident()
        if self._owner != me:
            self._scheduler.wait(lambda: not self._owner)
        self._owner = me
        self._count += 1
        return True

    def release(self) -> None:
        """Let go of it."""
        self._count -= 1
        if not self._count:
            self._owner = 0

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _Condition(_Lock):
    """A condition, with a lock of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._told = 0

    def wait(self) -> None:
        """Let go of the lock until it has been told that something has changed."""
        seen = self._told
        self.release()
        self._scheduler.wait(lambda: self._told > seen and not self._owner)
        self.acquire()

    def notify_all(self) -> None:
        """Tell everybody who waits."""
        self._told += 1
