"""Bench: how fast an image answers requests of one size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass

from imgtool.device import BlockDevice
from imgtool.errors import OutOfRange
from imgtool.workers import Workers

#: Each request that is under way takes a thread.
MAX_DEPTH = 1024


@dataclass(frozen=True)
class Load:
    """``count`` requests of ``size`` bytes, ``depth`` of them at a time, up to ``MAX_DEPTH``.

    The first is at ``offset``, each further one ``step`` bytes behind the one before it, modulo the
    disk's size. They read, or with ``write`` write bytes of the value ``pattern``. A flush follows
    wherever the requests that are left are a multiple of ``flush_interval`` (0: never); with
    ``drain`` it waits for those under way, and those that follow wait for it.
    """

    count: int = 75000
    depth: int = 64
    size: int = 4096
    step: int = 4096
    offset: int = 0
    write: bool = False
    pattern: int = 0
    flush_interval: int = 0
    drain: bool = True


def bench(device: BlockDevice, load: Load) -> float:
    """Put ``load`` on a disk, and return the seconds that it took.

    Raises what the first request to fail raised: :class:`~imgtool.errors.OutOfRange` if it does not
    lie inside the disk.
    """
    if load.offset + load.size > device.size:
        # So would the first request, but not before there are buffers for all threads.
        raise OutOfRange("The first request lies outside the disk", filename=device.name)
    return _Bench(device, load).run()


class _Bench:
    def __init__(self, device: BlockDevice, load: Load) -> None:
        self._device = device
        self._load = load
        self._data = bytes([load.pattern]) * load.size if load.write else b""
        self._failed = False

    def run(self) -> float:
        load = self._load
        drained = load.flush_interval and load.drain
        with Workers(load.depth, most=MAX_DEPTH) as workers:
            started = time.perf_counter()
            for requests in self._rounds() if drained else [range(load.count)]:
                shared = iter(requests)
                running = min(load.depth, len(requests))
                futures = [workers.submit(self._serve, shared) for _ in range(running)]
                wait(futures)
                for future in futures:
                    future.result()
                if drained and not (load.count - requests.stop) % load.flush_interval:
                    self._device.flush()
            return time.perf_counter() - started

    def _rounds(self) -> Iterator[range]:
        """The requests, by their numbers, between one flush and the next."""
        count, interval = self._load.count, self._load.flush_interval
        start = 0
        for stop in range(count % interval, count + 1, interval):
            if stop > start:
                yield range(start, stop)
                start = stop

    def _serve(self, requests: Iterator[int]) -> None:
        """Take requests from all that are left until there are none. Runs on several threads."""
        load, device = self._load, self._device
        buffer = bytearray(0 if load.write else load.size)
        flush_interval = 0 if load.drain else load.flush_interval
        try:
            # One step of a range's iterator cannot be interrupted by another thread.
            for number in requests:
                if self._failed:
                    return
                offset = (load.offset + number * load.step) % device.size
                if load.write:
                    device.write_at(offset, self._data)
                else:
                    device.read_into(offset, buffer)
                if flush_interval and not (load.count - number - 1) % flush_interval:
                    device.flush()
        except BaseException:
            self._failed = True
            raise
