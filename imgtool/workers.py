"""The only threads of imgtool: a small pool whose queue is bounded by its callers."""

from __future__ import annotations

import os
from collections.abc import Callable
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
        """Call ``function`` on a thread."""
        return self._pool.submit(function, *arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
