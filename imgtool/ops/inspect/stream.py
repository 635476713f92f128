"""Inspecting a stream: bytes are pushed in as they come, in pieces of any size."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from imgtool.inspection import Gone, Inspection, Region, Size
from imgtool.ops.inspect.session import TAIL, Session
from imgtool.ops.inspect.tasks import Task

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: How much of the start of a stream is kept: where nearly every image has its structure.
HEAD_WINDOW = 4 << 20

_GONE = "it lies behind what the stream had come to when it was asked for; inspect the whole file"


class _Capture(NamedTuple):
    """A region that is waited for, and what has come of it."""

    task: Task
    region: Region
    data: bytearray

    @property
    def end(self) -> int:
        return self.region.offset + self.region.length


class Inspector:
    """Judges an upload while it arrives: :meth:`feed` it every piece, then :meth:`finish`.

    ``format`` is what the file is said to be: anything else is unsafe then. ``max_virtual_size``
    (bytes) is the largest disk that is allowed, and ``accept`` are codes of problems that are to
    count as warnings. What is found does not depend on how the stream is cut into pieces.

    The first 4 MiB and the last 64 KiB are kept, and what the image's structure points to ahead.
    What it points to behind that is noted as not checked, and the verdict is ``unsafe``.
    """

    def __init__(
        self,
        *,
        filename: str = "<stream>",
        format: str | None = None,
        max_virtual_size: int | None = None,
        accept: Collection[str] = (),
    ) -> None:
        self.filename = filename
        self._session = Session(format=format, max_virtual_size=max_virtual_size, accept=accept)
        #: How many bytes have come.
        self.position = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._captures: list[_Capture] = []
        self._waiting_for_the_end: list[Task] = []
        self._finished = False
        self._begin()

    @property
    def unsafe(self) -> bool:
        """Whether the verdict is certain to be ``unsafe``, so that the upload may be ended."""
        return self._session.unsafe_so_far(self.position)

    @property
    def unmet(self) -> bool:
        """Whether it is certain that it is not of ``format``, or larger than is allowed."""
        return self._session.unmet_so_far(self.position)

    def feed(self, data: ReadableBuffer) -> None:
        """Take the next bytes of the stream. Raises ``ValueError`` after :meth:`finish`."""
        if self._finished:
            raise ValueError("the inspection is finished")
        with memoryview(data) as given, given.cast("B") as view:
            start = 0
            while start < len(view):
                # No further than where a capture ends, since what it asks for next may be there.
                step = len(view) - start
                for capture in self._captures:
                    step = min(step, capture.end - self.position)
                self._take(view[start : start + step])
                start += step

    def finish(self, *, ended: bool = True) -> Inspection:
        """Pass the verdict: the stream has ended, and all of it was fed.

        If it has not ``ended``, because what has come is unsafe already, nothing is said of where
        the file ends, and that the rest was not looked at.
        """
        if self._finished:
            raise ValueError("the inspection is finished")
        self._finished = True
        if not ended:
            self._session.cut_short(self.position)
            self._captures.clear()
            self._waiting_for_the_end.clear()
        # Whatever is waited for is cut short; what is asked for next lies behind.
        while self._captures or self._waiting_for_the_end:
            captures, self._captures = self._captures, []
            for capture in captures:
                self._answer(capture.task, bytes(capture.data))
            waiting, self._waiting_for_the_end = self._waiting_for_the_end, []
            for task in waiting:
                self._answer(task, self.position)
            self._begin()
        return self._session.result(self.filename, self.position)

    def _take(self, piece: memoryview) -> None:
        start, end = self.position, self.position + len(piece)
        room = HEAD_WINDOW - len(self._head)
        if room > 0:
            self._head += piece[:room]
        self._tail += piece[-TAIL:]
        if len(self._tail) > TAIL:
            del self._tail[:-TAIL]
        whole = []
        for capture in self._captures:
            if capture.region.offset < end:
                capture.data.extend(piece[max(0, capture.region.offset - start) :])
                if capture.end == end:
                    whole.append(capture)
        self.position = end
        if whole:
            self._captures = [capture for capture in self._captures if capture not in whole]
            for capture in whole:
                self._answer(capture.task, bytes(capture.data))
            self._begin()

    def _begin(self) -> None:
        while (task := self._session.tasks.next()) is not None:
            self._next(task, self._session.tasks.step(task))

    def _answer(self, task: Task, answer: bytes | int) -> None:
        self._next(task, self._session.tasks.step(task, answer))

    def _next(self, task: Task, request: Region | Size | None) -> None:
        """Answer a task from what is kept, for as long as that is possible."""
        while request is not None:
            if isinstance(request, Size):
                if not self._finished:
                    self._waiting_for_the_end.append(task)
                    return
                request = self._session.tasks.step(task, self.position)
                continue
            seen = self._seen(request.offset, request.length)
            if seen is None:
                missing = Gone(request, _GONE)
                request = self._session.tasks.step(task, missing=missing)
            elif len(seen) == request.length or self._finished:
                request = self._session.tasks.step(task, seen)
            else:
                self._captures.append(_Capture(task, request, bytearray(seen)))
                return

    def _seen(self, offset: int, length: int) -> bytes | None:
        """What has come of a region, as much as that is; None if a part of it is gone."""
        end = min(offset + length, self.position)
        if offset >= end:
            return b""
        if end <= len(self._head):
            return bytes(self._head[offset:end])
        tail_start = self.position - len(self._tail)
        if offset >= tail_start:
            return bytes(self._tail[offset - tail_start : end - tail_start])
        return None
