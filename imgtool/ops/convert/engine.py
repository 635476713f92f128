"""The copy engine: threads that each carry a window of the disk from the source to the target.

A thread reads a window, judges it and encodes it, beside the others. Then it waits for the
window's turn: room in the target is taken in the disk's order, so the output is the same however
many threads there are. Then it writes, beside the others again. The buffer stays with the thread,
and in its processor's cache. The caller's thread is one of them, and reports the progress.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imgtool.device import BlockDevice
from imgtool.errors import ImageError, OverBudget
from imgtool.extent import Extent, Kind
from imgtool.ops.convert import blocks
from imgtool.ops.convert.early import EarlyFlush
from imgtool.ops.convert.plan import WINDOW, Window, all_of, differing, windows
from imgtool.ops.convert.source import ReadFailed, SourceReader, Warn, describe
from imgtool.ranges import Ranges, coarsened, common, joined, without
from imgtool.units import align_down, align_up
from imgtool.workers import Stopped, Turns, Workers

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
    out nothing. With ``share`` what is to be written shares the source's blocks where the host can
    do that; with ``offload`` the host copies what is mapped as it is, zeros too. ``rate_limit`` is
    in bytes a second.
    """

    source: BlockDevice
    target: BlockDevice
    base: BlockDevice | None = None
    ranges: Iterable[Extent] | None = None
    zeroed: bool = True
    sparse_size: int = BLOCK
    compress: bool = False
    level: int | None = None
    share: bool = False
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
    """A window that has been read: what of it is to be written, and what made zero.

    Both are ranges of whole units that count from the window's beginning. ``encoded`` holds the
    compressed clusters by their place in the window, None for those that compression does not
    shrink. With ``offload`` nothing has been read: the host is to copy it.
    """

    window: Window
    buffer: bytearray
    data: Ranges
    zero: Ranges | None
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
        self._planning = threading.Lock()
        self._planned = enumerate(windows(self._plan(), self._size, self._window))
        self._turns = Turns()
        self._failure: BaseException | None = None
        #: What has been written and waits to become part of the target's mapping.
        self._written: deque[list[Extent]] = deque()
        #: Until the host says for the first time that it cannot.
        self._sharing = job.share
        self._shared = False
        self._zeroed_to = 0
        self._early: EarlyFlush
        self._started = time.monotonic()
        self._moved = 0

    def run(self) -> None:
        """Copy. Raises :class:`ImageError` naming the byte at which reading or writing failed."""
        with Workers(self._job.workers) as workers:
            self._early = EarlyFlush(workers, self._give_up)
            helpers = [workers.submit(self._carry) for _ in range(workers.count - 1)]
            try:
                self._carry(self._job.progress)
                for helper in helpers:
                    helper.result()
            except BaseException as error:
                self._give_up(error)
                raise
        if self._failure is not None:
            raise self._failure
        self._link_written()
        self._zero_up_to(self._size)
        if self._job.progress is not None:
            self._job.progress(self._size, self._size)

    def _carry(self, progress: Progress | None = None) -> None:
        """Carry windows, one after the other, until there are no more or something failed."""
        buffer = bytearray(self._window)
        try:
            while True:
                with self._planning:
                    number, window = next(self._planned, (-1, None))
                if window is None:
                    return
                self._carry_one(number, window, buffer)
                if progress is not None:
                    progress(window.offset, self._size)
        except Stopped:
            return
        except (_WriteFailed, ReadFailed) as failed:
            self._give_up(self._named(failed))
        except BaseException as error:
            self._give_up(error)

    def _carry_one(self, number: int, window: Window, buffer: bytearray) -> None:
        try:
            judged = self._read(self._trimmed(window), buffer)
        except (ReadFailed, ImageError):
            # Whatever is wrong further ahead, the first that is wrong is told.
            with self._turns.turn(number):
                raise
        with self._turns.turn(number):
            self._link_written()
            extents = self._place(judged)
        if extents:
            self._write(judged, extents)
            self._written.append(extents)
            for extent in extents:
                assert extent.storage is not None
                self._early.wrote(extent.storage, extent.length)

    def _give_up(self, error: BaseException) -> None:
        with self._planning:
            if self._failure is None:
                self._failure = error
        self._turns.stop()

    def _link_written(self) -> None:
        while self._written:
            self._job.target.link(self._written.popleft())

    def _trimmed(self, window: Window) -> Window:
        """The window without units at its ends that the plan does not touch."""
        first, last = window.data[0].offset, window.data[-1].end
        start = max(window.offset, align_down(first, self._unit))
        end = min(window.offset + window.length, align_up(last, self._unit))
        return Window(start, end - start, window.data)

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
        except OverBudget:
            raise  # this would be a way round the budget
        except (OSError, ImageError) as error:
            self._job.warn(f"error while reading block status at offset {end}: {describe(error)}")
            yield Extent(end, self._size - end, Kind.DATA)

    # Beside the other threads

    def _read(self, window: Window, buffer: bytearray) -> _Judged:
        job = self._job
        if job.offload and not job.in_part and self._ends_whole(window):
            return _Judged(window, buffer, self._covered(window), None, {}, offload=True)
        if job.in_part:
            window = self._widened(window)
        length = align_up(window.length, self._unit)
        self._reader.fill(window, memoryview(buffer)[:length])
        zero: Ranges | None = None
        if job.base is not None:
            data, zero = self._compare_with_base(window, buffer, length)
        elif job.ranges is not None:
            planned = self._covered(window)
            data = common(self._nonzero(buffer, length), planned)
            zero = without(planned, data)
        elif job.sparse_size == 0:
            data = [(0, length)]
        else:
            found = blocks.nonzero_ranges(buffer, length, self._block)
            data = coarsened(joined(found, job.sparse_size), self._unit)
        encoded: dict[int, bytes | None] = {}
        if job.compress:
            view = memoryview(buffer)
            for begin, end in data:
                pieces = job.target.encode(view[begin:end], job.level)
                encoded.update(zip(range(begin, end, self._unit), pieces, strict=True))
        return _Judged(window, buffer, data, zero, encoded)

    def _nonzero(self, buffer: bytearray, length: int) -> Ranges:
        return coarsened(blocks.nonzero_ranges(buffer, length, self._block), self._unit)

    def _compare_with_base(
        self, window: Window, buffer: bytearray, length: int
    ) -> tuple[Ranges, Ranges]:
        """What differs from the base: ranges that hold data, and ranges of zeros."""
        base = self._job.base
        assert base is not None
        below = bytearray(length)
        view = memoryview(below)
        inside = max(0, min(window.length, base.size - window.offset))
        if inside:
            base.read_into(window.offset, view[:inside])
        # What was left out of the plan is the same in both: it was not read on this side.
        differ = blocks.differing_ranges(buffer, below, length, self._block)
        differ = common(coarsened(differ, self._unit), self._covered(window))
        nonzero = self._nonzero(buffer, length)
        return common(differ, nonzero), without(differ, nonzero)

    def _widened(self, window: Window) -> Window:
        """The window with whole units to read: the plan may have left out parts of them."""
        if all(self._is_whole(part) for part in window.data):
            return window
        parts: list[Extent] = []
        for start, end in self._covered(window):
            length = min(end, window.length) - start
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

    def _covered(self, window: Window) -> Ranges:
        """The units that the window's data touches."""
        parts = ((part.offset - window.offset, part.end - window.offset) for part in window.data)
        return coarsened(joined(parts), self._unit)

    def _write(self, judged: _Judged, extents: list[Extent]) -> None:
        view = memoryview(judged.buffer)
        origin = judged.window.offset
        for extent in extents:
            assert extent.storage is not None
            assert extent.host_offset is not None
            try:
                if judged.offload:
                    self._offload(judged, extent)
                    continue
                pieces = self._share(judged.window, extent) if self._sharing else [extent]
                for piece in pieces:
                    assert piece.host_offset is not None
                    start = piece.offset - origin
                    extent.storage.write_at(piece.host_offset, view[start : start + piece.length])
            except OSError as error:
                raise _WriteFailed(extent.offset, error) from error

    def _share(self, window: Window, extent: Extent) -> list[Extent]:
        """Let ``extent`` share the source's blocks as far as they go; return what is to be written.

        What is zeros in the source is not among the extents, so no hole and no zeros become data.
        """
        target, place = extent.storage, extent.host_offset
        assert target is not None
        assert place is not None
        rest: list[Extent] = []
        done = extent.offset
        for part in window.data:
            piece = part.clip(extent.offset, extent.end)
            if piece.length <= 0 or piece.storage is None or piece.host_offset is None:
                continue
            length = align_down(piece.length, BLOCK)
            host = place + piece.offset - extent.offset
            if not length or piece.host_offset % BLOCK or host % BLOCK:
                continue
            if not target.share_from(piece.storage, piece.host_offset, host, length):
                # Where it has worked before, it is this piece alone.
                self._sharing = self._shared
                if not self._sharing:
                    break
                continue
            self._shared = True
            if done < piece.offset:
                rest.append(extent.clip(done, piece.offset))
            done = piece.offset + length
        if done < extent.end:
            rest.append(extent.clip(done, extent.end))
        return rest

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

    # In the window's turn: nobody else uses the target's mapping

    def _place(self, judged: _Judged) -> list[Extent]:
        """Take room for what is to be written, and deal with all that is not."""
        window = judged.window
        extents: list[Extent] = []
        done = moved = 0
        try:
            self._zero_up_to(window.offset)
            for start, end in judged.data:
                self._leave(judged, done, start)
                if self._job.compress:
                    extents += self._store_encoded(judged, start, end)
                else:
                    stop = window.offset + min(end, window.length)
                    extents += self._room(judged, window.offset + start, stop)
                done, moved = end, moved + end - start
            self._leave(judged, done, window.length)
        except OSError as error:
            raise _WriteFailed(window.offset, error) from error
        self._zeroed_to = window.offset + window.length
        self._throttle(moved)
        return extents

    def _store_encoded(self, judged: _Judged, begin: int, end: int) -> list[Extent]:
        """Store compressed clusters; return room for those that compression does not shrink."""
        target = self._job.target
        extents: list[Extent] = []
        first, together = begin, list[bytes]()
        for start in range(begin, end, self._unit):
            offset = judged.window.offset + start
            encoded = judged.encoded[start]
            stop = min(offset + self._unit, self._size)
            if encoded is not None and (stop == offset + self._unit or stop == target.size):
                together.append(encoded)
                continue
            if together:
                target.write_encoded(judged.window.offset + first, together)
            extents += self._room(judged, offset, stop)
            first, together = start + self._unit, []
        if together:
            target.write_encoded(judged.window.offset + first, together)
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

    def _leave(self, judged: _Judged, start: int, end: int) -> None:
        """Deal with a range of a window that is not written: it may have to be made zero."""
        if start >= end:
            return
        target, origin = self._job.target, judged.window.offset
        if judged.zero is not None:
            for begin, stop in common(judged.zero, [(start, end)]):
                target.write_zeroes(origin + begin, stop - begin, unmap=True)
        elif not self._job.zeroed:
            target.write_zeroes(origin + start, end - start, unmap=True)

    def _zero_up_to(self, offset: int) -> None:
        """Make zero what lies between windows, if the target does not read so already."""
        if offset > self._zeroed_to and not self._job.zeroed and not self._job.in_part:
            self._job.target.write_zeroes(self._zeroed_to, offset - self._zeroed_to, unmap=True)
        self._zeroed_to = max(offset, self._zeroed_to)

    def _named(self, failed: _WriteFailed | ReadFailed) -> ImageError:
        """The error that the caller gets: it says where on the disk, and in which file."""
        reading = isinstance(failed, ReadFailed)
        error = ImageError(
            f"error while {'reading' if reading else 'writing'} at byte {failed.offset}: "
            f"{describe(failed.cause)}",
            filename=_file_of(failed.cause) or (self._job.source.name if reading else None),
        )
        error.__cause__ = failed.cause
        return error

    def _throttle(self, moved: int) -> None:
        limit = self._job.rate_limit
        if limit:
            self._moved += moved
            ahead = self._moved / limit - (time.monotonic() - self._started)
            if ahead > 0:
                self._turns.pause(ahead)


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
