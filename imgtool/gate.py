"""Gate: readers pass freely, and now and then everybody waits until nobody is inside."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """What a reader may still be looking at is taken away only with the gate drained.

    Entering is cheap and never waits for other readers. A thread that drains the gate must not be
    inside it; one that has drained it already may do so again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed_by: int | None = None

    def __enter__(self) -> None:
        with self._changed:
            while self._closed_by is not None:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextlib.contextmanager
    def drained(self) -> Iterator[None]:
        """Wait until nobody is inside, and let nobody in meanwhile."""
        own = threading.get_ident()
        if self._closed_by == own:
            yield
            return
        with self._changed:
            while self._closed_by is not None:
                self._changed.wait()
            self._closed_by = own
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed_by = None
                self._changed.notify_all()
