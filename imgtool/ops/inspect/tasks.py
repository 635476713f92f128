"""Runs inspectors from one request to the next; errors become problems, and effort has a limit."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from imgtool.errors import CorruptImage, ImageError, UnsupportedFeature
from imgtool.inspection import Notes, NotSeen, Region, Size, Steps
from imgtool.inspection.steps import MAX_REGION

#: What one inspection may ask for in all: bytes, and requests.
MAX_BYTES = 64 << 20
MAX_REQUESTS = 20_000


class Task(NamedTuple):
    """An inspector at work, and where it writes."""

    notes: Notes
    steps: Steps[None]


class Tasks:
    """The tasks of one inspection; ``started`` holds those that have yet to take a step."""

    def __init__(self) -> None:
        self.started: deque[tuple[Notes, Steps[None]]] = deque()
        self._bytes = 0
        self._requests = 0

    def next(self) -> Task | None:
        """A task that has not begun, or None."""
        return Task(*self.started.popleft()) if self.started else None

    def step(
        self, task: Task, answer: bytes | int | None = None, missing: NotSeen | None = None
    ) -> Region | Size | None:
        """Answer a task's request, or say that it can't be; return what it asks for next."""
        try:
            while True:
                steps = task.steps
                request = steps.send(answer) if missing is None else steps.throw(missing)
                if isinstance(request, Size):
                    return request
                assert 0 <= request.length <= MAX_REGION, request
                self._bytes += request.length
                self._requests += 1
                if self._bytes <= MAX_BYTES and self._requests <= MAX_REQUESTS:
                    return request
                missing = NotSeen(request, "it is more than an inspection looks at")
        except StopIteration:
            return None
        except NotSeen as error:
            task.notes.not_checked(error.region.what, error.region.offset, error.reason)
        except UnsupportedFeature as error:
            for name in error.names:
                task.notes.unsafe("unsupported-feature", f"It needs the unknown feature: {name}")
        except CorruptImage as error:
            task.notes.unsafe("corrupt", error.what, error.offset)
        except ImageError as error:
            task.notes.unsafe("corrupt", error.reason)
        return None
