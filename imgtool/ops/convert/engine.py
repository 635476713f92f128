"""The copy engine: reads, judges and encodes on threads, allocates in order, writes on threads.

Windows are read ahead on a few threads. Their results are taken in the disk's order, and only then
is room allocated in the target, so the output is the same however many threads there are. Writing
goes back to the threads. How many windows are under way does not depend on the threads either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind
from imgtool.ops.convert import blocks
from imgtool.ops.convert.plan import WINDOW, Window, all_of, differing, windows
from imgtool.ops.convert.source import ReadFailed, SourceReader, Warn, describe
from imgtool.units import align_down, align_up
from imgtool.workers import Workers

#: Windows being read, and windows being written, at a time: 32 MiB of buffers in all.
_AHEAD = 8

#: The granularity at which zeros are looked for.
BLOCK = 4096

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CopyJob:
    """What is copied, and how.

    ``base`` is the image under the target, from which only differences are written. ``ranges``, in
    order, are all that is copied, where they are given, zeros included; what lies between them is
    left alone in the target, or, where the target's units are larger, must read as in the source.
    ``zeroed`` says that the target reads as zeros where nothing is written (over a ``base``: as
    the base). ``sparse_size`` is the shortest run of zeros, in bytes, that is left out; 0 leaves
    out nothing. ``rate_limit`` is in bytes a second.
    """

    source: BlockDevice
    target: BlockDevice
    base: BlockDevice | None = None
    ranges: Iterable[Extent] | None = None
    zeroed: bool = True
    sparse_size: int = BLOCK
    compress: bool = False
    level: int | None = None
    offload: bool = False
    salvage: bool = False
    rate_limit: int | None = None
    workers: int | None = None
    progress: Progress | None = None
    warn: Warn = lambda text: None

    @property
    def in_part(self) -> bool:
        """Whether what is not copied has its own contents in the target, which must stay."""
        return self.base is not None or self.ranges is not None


@dataclass
class _Judged:
    """A window that has been read: which blocks are to be written, which made zero.

    ``encoded`` holds the compressed clusters by their offset in the window, None for those that
    compression does not shrink. With ``offload`` nothing has been read: the host is to copy it.
    """

    window: Window
    buffer: bytearray
    data: blocks.Blocks
    zero: blocks.Blocks | None
    encoded: dict[int, bytes | None]
    offload: bool = False


class CopyEngine:
    """Carries out one :class:`CopyJob`."""

    def __init__(self, job: CopyJob) -> None:
        self._job = job
        self._size = job.source.size
        self._reader = SourceReader(job.source, job.salvage, job.warn)
        target = job.target
        # Blocks are what is judged; units what the target allocates.
        self._block = 512 if job.sparse_size % BLOCK else BLOCK
        if job.compress:
            self._unit = target.encoded_size
            self._block = min(self._block, self._unit)
        else:
            self._unit = max(self._block, target.limits.alignment)
        self._window = max(WINDOW, self._unit)
        self._free: list[bytearray] = []
        self._writing: deque[tuple[Future[None], list[Extent], bytearray]] = deque()
        self._zeroed_to = 0
        self._started = time.monotonic()
        self._moved = 0

    def run(self) -> None:
        """Copy. Raises :class:`ImageError` naming the byte at which reading or writing failed."""
        with Workers(self._job.workers) as workers:
            reading: deque[Future[_Judged]] = deque()
            for window in windows(self._plan(), self._size, self._window):
                reading.append(workers.submit(self._read, window, self._buffer()))
                if len(reading) > _AHEAD:
                    self._take(self._result(reading.popleft()), workers)
            while reading:
                self._take(self._result(reading.popleft()), workers)
            while self._writing:
                self._finish_write()
        self._zero_up_to(self._size)
        self._report(self._size)

    def _plan(self) -> Iterable[Extent]:
        job = self._job
        if job.ranges is not None:
            return job.ranges
        if job.base is not None:
            return differing(job.source, job.base)
        if job.sparse_size == 0:
            return all_of(self._size)
        return self._mapped() if job.salvage else job.source.extents()

    def _mapped(self) -> Iterator[Extent]:
        """What is mapped, as far as that can be read; the rest is tried piece by piece."""
        end = 0
        try:
            for extent in self._job.source.extents():
                yield extent
                end = extent.end
        except (OSError, ImageError) as error:
            self._job.warn(f"error while reading block status at offset {end}: {describe(error)}")
            yield Extent(end, self._size - end, Kind.DATA)

    # On the threads

    def _read(self, window: Window, buffer: bytearray) -> _Judged:
        job = self._job
        if job.offload and not job.in_part and self._ends_whole(window):
            return _Judged(window, buffer, self._covered(window), None, {}, offload=True)
        if job.in_part:
            window = self._widened(window)
        self._reader.fill(window, buffer)
        length = align_up(window.length, self._unit)
        if job.base is not None:
            data, zero = self._compare_with_base(window, buffer, length)
        elif job.ranges is not None:
            planned = self._covered(window)
            nonzero = blocks.nonzero_blocks(buffer, length, self._block)
            data = blocks.coarsen(nonzero, self._unit // self._block) & planned
            zero = planned & ~data
        elif job.sparse_size == 0:
            data, zero = self._covered(Window(window.offset, window.length, [])), None
            data[:] = True
        else:
            found = blocks.nonzero_blocks(buffer, length, self._block)
            found = blocks.fill_gaps(found, job.sparse_size // self._block)
            data, zero = blocks.coarsen(found, self._unit // self._block), None
        encoded: dict[int, bytes | None] = {}
        if job.compress:
            view = memoryview(buffer)
            for index in data.nonzero()[0].tolist():
                start = index * self._unit
                encoded[start] = job.target.encode(view[start : start + self._unit], job.level)
        return _Judged(window, buffer, data, zero, encoded)

    def _compare_with_base(
        self, window: Window, buffer: bytearray, length: int
    ) -> tuple[blocks.Blocks, blocks.Blocks]:
        base = self._job.base
        assert base is not None
        below = bytearray(length)
        view = memoryview(below)
        inside = max(0, min(window.length, base.size - window.offset))
        if inside:
            base.read_into(window.offset, view[:inside])
        # What was left out of the plan is the same in both: it was not read on this side.
        planned = self._covered(window)
        factor = self._unit // self._block
        differ = blocks.differing_blocks(buffer, below, length, self._block)
        differ = blocks.coarsen(differ, factor) & planned
        nonzero = blocks.coarsen(blocks.nonzero_blocks(buffer, length, self._block), factor)
        return differ & nonzero, differ & ~nonzero

    def _widened(self, window: Window) -> Window:
        """The window with whole units to read: the plan may have left out parts of them."""
        if all(self._is_whole(part) for part in window.data):
            return window
        parts: list[Extent] = []
        for covered, first, end in blocks.runs(self._covered(window)):
            if covered:
                start = first * self._unit
                length = min(end * self._unit, window.length) - start
                parts.append(Extent(window.offset + start, length, Kind.DATA))
        return window._replace(data=parts)

    def _is_whole(self, part: Extent) -> bool:
        return not part.offset % self._unit and (
            not part.end % self._unit or part.end == self._size
        )

    def _ends_whole(self, window: Window) -> bool:
        """Whether the target has nothing in the window's last unit that is not overwritten."""
        end = window.offset + window.length
        return end % self._unit == 0 or end == self._job.target.size

    def _covered(self, window: Window) -> blocks.Blocks:
        """The units that the window's data touches."""
        import numpy as np

        covered = np.zeros(-(-window.length // self._unit), dtype=np.bool_)
        for part in window.data:
            first = (part.offset - window.offset) // self._unit
            last = -(-(part.end - window.offset) // self._unit)
            covered[first:last] = True
        return covered

    def _write(self, judged: _Judged, extents: list[Extent]) -> None:
        view = memoryview(judged.buffer)
        for extent in extents:
            assert extent.storage is not None
            assert extent.host_offset is not None
            try:
                if judged.offload:
                    self._offload(judged, extent)
                else:
                    start = extent.offset - judged.window.offset
                    extent.storage.write_at(extent.host_offset, view[start : start + extent.length])
            except OSError as error:
                raise _WriteFailed(extent.offset, error) from error

    def _offload(self, judged: _Judged, extent: Extent) -> None:
        """Let the kernel copy what lies in a host file as it is; read and write the rest."""
        target, host = extent.storage, extent.host_offset
        assert target is not None
        assert host is not None
        done = extent.offset
        for part in judged.window.data:
            if part.end <= extent.offset or part.offset >= extent.end:
                continue
            piece = part.clip(extent.offset, extent.end)
            if done < piece.offset:
                target.write_zeroes(host + done - extent.offset, piece.offset - done)
            copied = 0
            place = host + piece.offset - extent.offset
            if piece.storage is not None and piece.host_offset is not None:
                copied = target.copy_from(piece.storage, piece.host_offset, place, piece.length)
            if copied < piece.length:
                rest = piece.clip(piece.offset + copied, piece.end)
                self._reader.fill(Window(rest.offset, rest.length, [rest]), judged.buffer)
                target.write_at(place + copied, memoryview(judged.buffer)[: rest.length])
            done = piece.end
        if done < extent.end:
            target.write_zeroes(host + done - extent.offset, extent.end - done)

    # In order, on the caller's thread

    def _take(self, judged: _Judged, workers: Workers) -> None:
        window = judged.window
        self._zero_up_to(window.offset)
        extents: list[Extent] = []
        try:
            for wanted, first, end in blocks.runs(judged.data):
                start = window.offset + first * self._unit
                stop = min(window.offset + end * self._unit, window.offset + window.length)
                if not wanted:
                    self._leave_zero(judged, start, stop, first, end)
                elif self._job.compress:
                    extents += self._store_encoded(judged, first, end)
                else:
                    extents += self._room(judged, start, stop)
        except OSError as error:
            raise self._write_error(_WriteFailed(window.offset, error)) from error
        self._zeroed_to = window.offset + window.length
        future = workers.submit(self._write, judged, extents)
        self._writing.append((future, extents, judged.buffer))
        if len(self._writing) > _AHEAD:
            self._finish_write()
        self._throttle(int(judged.data.sum()) * self._unit)
        self._report(window.offset)

    def _store_encoded(self, judged: _Judged, first: int, end: int) -> list[Extent]:
        """Store compressed clusters; return room for those that compression does not shrink."""
        target = self._job.target
        extents: list[Extent] = []
        for index in range(first, end):
            start = index * self._unit
            offset = judged.window.offset + start
            encoded = judged.encoded[start]
            stop = min(offset + self._unit, self._size)
            if encoded is None or (stop < offset + self._unit and stop < target.size):
                extents += self._room(judged, offset, stop)
            else:
                target.write_encoded(offset, encoded)
        return extents

    def _room(self, judged: _Judged, start: int, stop: int) -> list[Extent]:
        """Take room for a range. A unit that the source ends inside of is changed in place."""
        target, window = self._job.target, judged.window
        if not self._ends_whole(window) and stop == window.offset + window.length:
            tail = max(start, align_down(stop, self._unit))
            view = memoryview(judged.buffer)
            target.write_at(tail, view[tail - window.offset : stop - window.offset])
            stop = tail
        return target.reserve(start, stop - start) if start < stop else []

    def _leave_zero(self, judged: _Judged, start: int, stop: int, first: int, end: int) -> None:
        """Deal with a range that is not written: it may have to be made zero."""
        target = self._job.target
        if judged.zero is not None:
            for zero, low, high in blocks.runs(judged.zero[first:end]):
                if zero:
                    begin = start + low * self._unit
                    length = min(start + high * self._unit, stop) - begin
                    target.write_zeroes(begin, length, unmap=True)
        elif not self._job.zeroed:
            target.write_zeroes(start, stop - start, unmap=True)

    def _zero_up_to(self, offset: int) -> None:
        """Make zero what lies between windows, if the target does not read so already."""
        if offset > self._zeroed_to and not self._job.zeroed and not self._job.in_part:
            self._job.target.write_zeroes(self._zeroed_to, offset - self._zeroed_to, unmap=True)
        self._zeroed_to = max(offset, self._zeroed_to)

    def _finish_write(self) -> None:
        future, extents, buffer = self._writing.popleft()
        try:
            future.result()
        except _WriteFailed as error:
            raise self._write_error(error) from error.cause
        except ReadFailed as error:
            raise self._read_error(error) from error.cause
        self._job.target.link(extents)
        self._free.append(buffer)

    def _result(self, future: Future[_Judged]) -> _Judged:
        try:
            return future.result()
        except ReadFailed as error:
            raise self._read_error(error) from error.cause

    def _read_error(self, error: ReadFailed) -> ImageError:
        return ImageError(
            f"error while reading at byte {error.offset}: {describe(error.cause)}",
            filename=_file_of(error.cause) or self._job.source.name,
        )

    def _write_error(self, error: _WriteFailed) -> ImageError:
        return ImageError(
            f"error while writing at byte {error.offset}: {describe(error.cause)}",
            filename=_file_of(error.cause),
        )

    def _buffer(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(self._window)

    def _throttle(self, moved: int) -> None:
        limit = self._job.rate_limit
        if limit:
            self._moved += moved
            ahead = self._moved / limit - (time.monotonic() - self._started)
            if ahead > 0:
                time.sleep(ahead)

    def _report(self, done: int) -> None:
        if self._job.progress is not None:
            self._job.progress(done, self._size)


def _file_of(error: Exception) -> str | None:
    """The file that an error befell, which may lie below the image that was asked for."""
    name = getattr(error, "filename", None)
    return name if isinstance(name, str) else None


class _WriteFailed(Exception):
    """Writing to the target failed at guest ``offset``."""

    def __init__(self, offset: int, cause: Exception) -> None:
        super().__init__(offset, cause)
        self.offset = offset
        self.cause = cause
