"""Several threads that use one disk at the same time.

They take turns at each call of the file and at each lock, as the seed says. Each has sectors of its
own, some in clusters that no other thread writes to, some beside others' in one cluster: what a
sector may hold follows from what its thread has done.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.campaigns.crash.bench import Bench, Disk
from tests.campaigns.crash.workloads.common import age, geometry
from tests.kit.recording import SECTOR
from tests.kit.scheduler import Scheduler

#: Ranges of bytes: offset and length.
Ranges = list[tuple[int, int]]


def together(bench: Bench) -> None:
    """Threads that write, zero, discard, compress and flush beside each other."""
    chance = bench.random
    fixed = {"compat": "1.1", "data_file": "data"} if chance.random() < 0.15 else {}
    options, unit, size = geometry(bench, **fixed)
    disk = bench.image("image", size, options)
    age(disk)
    bench.start()
    threads = chance.choice((2, 3, 4))
    whole, parts = _shares(bench, size, unit, threads)
    scheduler = Scheduler(chance)
    with scheduler.locks():
        disk.open()
    shared = _Shared(disk)
    bench.log.pause = scheduler.pause
    scheduler.run(
        [
            _Thread(shared, whole[number], parts[number], bulk=not number).run
            for number in range(len(whole))
        ]
    )
    bench.log.pause = lambda: None
    disk.close()


def _shares(bench: Bench, size: int, unit: int, threads: int) -> tuple[list[Ranges], list[Ranges]]:
    """What belongs to each thread: whole clusters, and runs of sectors in those that are shared.

    There are no more than ``threads``.
    """
    chance = bench.random
    whole: list[Ranges] = [[] for _ in range(threads)]
    parts: list[Ranges] = [[] for _ in range(threads)]
    for start in range(0, size, unit):
        length = min(unit, size - start)
        if chance.random() < 0.5 or length <= SECTOR:
            whole[chance.randrange(threads)].append((start, length))
            continue
        place = start
        while place < start + length:
            run = min(chance.choice((1, 1, 2, 5)) * SECTOR, start + length - place)
            parts[chance.randrange(threads)].append((place, run))
            place += run
    # A small disk may leave some threads without anything: they would have nothing to do.
    some = [number for number in range(threads) if whole[number] or parts[number]]
    return [whole[number] for number in some], [parts[number] for number in some]


class _Shared:
    """A disk that several use, and what of it has been done with: ``done``."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.done = bytearray(disk.content)

    def change(self, offset: int, length: int, run: Callable[[], None]) -> None:
        """Do something to a range, which nobody else touches."""
        run()
        self.done[offset : offset + length] = self.disk.content[offset : offset + length]

    def flush(self) -> None:
        """Flush; what had been done with before is promised then, not what was under way."""
        disk, log = self.disk, self.disk.bench.log
        disk.bench.note("flush begins")
        promised = disk.history.change(len(log), bytes(self.done))
        disk.history.change(len(log), bytes(disk.content))
        disk.device.flush()
        disk.bench.note("flush ends")
        disk.history.promise(len(log), promised)


class _Thread:
    def __init__(self, shared: _Shared, whole: Ranges, parts: Ranges, *, bulk: bool) -> None:
        self._shared, self._disk, self._chance = shared, shared.disk, shared.disk.bench.random
        self._whole, self._parts, self._bulk = whole, parts, bulk

    def run(self) -> None:
        """Use the disk for a while."""
        for _ in range(5):
            ranges = self._chance.choice([found for found in (self._whole, self._parts) if found])
            offset, length = self._chance.choice(ranges)
            kinds: list[Callable[[int, int], None]] = [self._disk.write] * 3 + [self._disk.zero]
            if ranges is self._whole:
                kinds += [self._disk.discard, self._compress]
                if self._bulk:
                    kinds += [self._write_in_bulk] * 3
            kind = self._chance.choice(kinds)
            self._shared.change(offset, length, lambda: kind(offset, length))  # noqa: B023
            if self._chance.random() < 0.4:
                self._shared.flush()

    def _compress(self, offset: int, length: int) -> None:
        if self._disk.device.encoded_size:
            self._disk.write_compressed(offset)

    def _write_in_bulk(self, offset: int, length: int) -> None:
        """Write as a conversion does: room is taken, filled, and only then part of the disk."""
        data = self._disk.announce(offset, length)
        extents = self._disk.device.reserve(offset, length)
        for extent in extents:
            assert extent.storage is not None
            assert extent.host_offset is not None
            start = extent.offset - offset
            extent.storage.write_at(extent.host_offset, data[start : start + extent.length])
        self._disk.device.link(extents)
