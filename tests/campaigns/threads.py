"""Threads hammering one disk, and a checker that finds every read linear, sector by sector.

    python -m tests.campaigns.threads --operations 20000 --threads 8

Every write puts its own number into every word of its sectors. A read that begins after a write was
acknowledged never sees what was there before, and of two reads, one after the other, the second
never sees anything older. At the end the disk holds what was written last, each snapshot what it
held when it was taken, and a check finds nothing.
"""

from __future__ import annotations

import faulthandler
import itertools
import random
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import imgtool
from imgtool import BlockDevice
from tests.campaigns.running import Tally, named, parser
from tests.campaigns.scenarios.folders import ANY, FAST, PASSWORD
from tests.campaigns.workshop import Wrong
from tests.kit.scratch import scratch

SECTOR = 512
SIZE = 2 << 20
_SECTORS = SIZE // SECTOR
_WORDS = SECTOR // 8

#: Sectors of which one thread at a time is the writer, so that the order of writes is known.
_STRIPE = 3

#: A round that takes longer than this many seconds hangs: the run ends with a traceback.
TIMEOUT = 600

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Kind:
    """A kind of disk: how its image is made; ``on_base`` puts it on one that is full of data."""

    name: str
    format: str = "qcow2"
    options: Mapping[str, object] = field(default_factory=dict)
    on_base: bool = False
    snapshots: bool = False
    password: str | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("raw", "raw"),
        Kind("512", options={"cluster_size": 512}),
        Kind("4k", options={"cluster_size": 4096}, snapshots=True),
        Kind("64k", snapshots=True),
        Kind("2M", options={"cluster_size": 2 << 20}),
        Kind("extended", options={"extended_l2": True, "cluster_size": 16384}, snapshots=True),
        Kind("extended-base", options={"extended_l2": True, "cluster_size": 65536}, on_base=True),
        Kind("base", options={"cluster_size": 4096}, on_base=True, snapshots=True),
        Kind("v2-base", options={"compat": "0.10", "cluster_size": 4096}, on_base=True),
        Kind("zstd", options={"compression_type": "zstd", "cluster_size": 16384}, snapshots=True),
        Kind("data-file", options={"data_file": "image.data", "cluster_size": 4096}),
        Kind("luks", "luks", FAST, password=PASSWORD),
        Kind(
            "encrypted", options={"encrypt_iter_time": 10, "cluster_size": 4096}, password=PASSWORD
        ),
    )
}


class History:
    """What was written to each sector, as far as it is needed to judge reads.

    ``begun`` and ``done`` are the numbers of the last write that was begun, and acknowledged;
    ``zeroed`` that of the last one that wrote zeros; ``seen`` the last that a read has found.
    """

    def __init__(self, first: int) -> None:
        self.begun = np.full(_SECTORS, first, np.int64)
        self.done = self.begun.copy()
        self.seen = self.begun.copy()
        self.zeroed = np.full(_SECTORS, -1 if first else 0, np.int64)
        self._numbers = itertools.count(first + 1)
        self._stripes = [threading.Lock() for _ in range(-(-_SECTORS // _STRIPE))]

    def write(self, first: int, end: int, zeros: bool, change: Callable[[int], None]) -> None:
        """Make ``change``, which is told the number to write to the sectors."""
        stripes = self._stripes[first // _STRIPE : -(-end // _STRIPE)]
        for stripe in stripes:
            stripe.acquire()
        try:
            number = next(self._numbers)
            if zeros:
                self.zeroed[first:end] = number
            self.begun[first:end] = number
            change(number)
            self.done[first:end] = number
        finally:
            for stripe in stripes:
                stripe.release()

    def read(self, first: int, end: int, read: Callable[[], bytes]) -> None:
        """Judge one read of the sectors."""
        least = np.maximum(self.done[first:end], self.seen[first:end])
        found = words(read())
        self.judge(found, first, end, least, self.begun[first:end].copy())
        # Of a sector that is being written, each word is new or old. Zeros do not say when.
        known = found.min(axis=1)
        np.maximum(self.seen[first:end], known, out=self.seen[first:end])

    def judge(self, found: Numbers, first: int, end: int, least: Numbers, most: Numbers) -> None:
        """Every word is the number of a write from ``least`` to ``most`` of its sector."""
        zero = (self.zeroed[first:end] >= least)[:, None]
        good = (found >= least[:, None]) & (found <= most[:, None])
        good = np.where(found == 0, zero, good)
        if not good.all():
            at = int(np.flatnonzero(~good.all(axis=1))[0])
            raise Wrong(
                f"sector {first + at} shows {np.unique(found[at]).tolist()}, which was not "
                f"written between {least[at]} and {most[at]} (zeros: {self.zeroed[first + at]})"
            )


def words(data: bytes) -> Numbers:
    """The words of each sector, a row each."""
    return np.frombuffer(data, np.int64).reshape(-1, _WORDS)


def stamped(number: int, sectors: int) -> bytes:
    """The contents of sectors that the write of this number writes."""
    return np.full(sectors * _WORDS, number, np.int64).tobytes()


class Hammer:
    """One disk being hammered. ``counts`` is how often each operation was carried out."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._kind = kind
        self.path = folder / "image"
        base: dict[str, object] = {}
        if kind.on_base:
            (folder / "base").write_bytes(stamped(1, _SECTORS))
            base = {"backing_file": "base", "backing_format": "raw"}
        imgtool.create(
            self.path, SIZE, format=kind.format, password=kind.password, policy=ANY,
            **kind.options, **base,  # type: ignore[arg-type]
        )  # fmt: skip
        self.history = History(1 if kind.on_base else 0)
        self.counts: dict[str, int] = {}
        self.disk: BlockDevice
        self._snapshots: dict[str, tuple[Numbers, Numbers, Numbers]] = {}
        self._stop = threading.Event()
        self._tally = threading.Lock()

    def _open(self, **options: object) -> BlockDevice:
        return imgtool.open(
            self.path, format=self._kind.format, password=self._kind.password, policy=ANY,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip

    def run(self, threads: int, operations: int, seed: int = 0) -> None:
        """Let ``threads`` carry out about ``operations``. Raises :class:`Wrong`."""
        with self._open(writable=True) as self.disk:
            if self.disk.stores_zeros:
                self.disk.write_zeroes(0, SIZE)
            with ThreadPoolExecutor(threads) as pool:
                each = operations // threads
                jobs = [pool.submit(self._work, seed * 1000 + n, each) for n in range(threads)]
                for job in jobs:
                    job.result()
        self._judge_end()

    def _work(self, seed: int, operations: int) -> None:
        chance = random.Random(seed)
        kinds = ["read"] * 40 + ["write"] * 30 + ["zero"] * 6 + ["unmap"] * 4 + ["flush"] * 3
        if not self.disk.stores_zeros:
            kinds += ["discard"] * 3
        if self.disk.encoded_size:
            kinds += ["compress"] * 8
        if self._kind.snapshots:
            kinds += ["snapshot", "delete"]
        try:
            for _ in range(operations):
                if self._stop.is_set():
                    return
                self._do(chance, chance.choice(kinds))
        except BaseException:
            self._stop.set()
            raise

    def _do(self, chance: random.Random, kind: str) -> None:
        with self._tally:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        unit = self.disk.limits.alignment // SECTOR if kind == "discard" else 1
        if kind == "compress":
            unit = self.disk.encoded_size // SECTOR
        if kind in ("flush", "snapshot", "delete"):
            getattr(self, f"_{kind}")(chance)
            return
        unit = max(1, unit)
        length = unit
        if kind not in ("compress", "discard"):
            length = chance.choice((1, 1, 2, 7, 8, 40, 200))
        # Most of it happens in a few places, so that it meets.
        reach = _SECTORS if chance.random() < 0.3 else _SECTORS // 8
        first = chance.randrange(max(1, reach - length)) // unit * unit
        end = min(first + length, _SECTORS)
        self._request(kind, first, end)

    def _request(self, kind: str, first: int, end: int) -> None:
        disk, offset, length = self.disk, first * SECTOR, (end - first) * SECTOR
        if kind == "read":
            self.history.read(first, end, lambda: disk.read_at(offset, length))
            return

        def change(number: int) -> None:
            if kind == "write":
                disk.write_at(offset, stamped(number, end - first))
            elif kind == "compress":
                (encoded,) = disk.encode(stamped(number, end - first))
                assert encoded is not None
                disk.write_encoded(offset, [encoded])
            elif kind == "discard":
                disk.discard(offset, length)
            else:
                disk.write_zeroes(offset, length, unmap=kind == "unmap")

        self.history.write(first, end, kind in ("zero", "unmap", "discard"), change)

    def _flush(self, chance: random.Random) -> None:
        self.disk.flush()

    def _snapshot(self, chance: random.Random) -> None:
        name = f"s{chance.randrange(1 << 60)}"
        least = self.history.done.copy()
        self.disk.create_snapshot(name)
        most, zeroed = self.history.begun.copy(), self.history.zeroed.copy()
        with self._tally:
            self._snapshots[name] = least, most, zeroed

    def _delete(self, chance: random.Random) -> None:
        with self._tally:
            if len(self._snapshots) < 4:
                return
            name = chance.choice(sorted(self._snapshots))
            del self._snapshots[name]
        self.disk.delete_snapshot(name)

    def _judge_end(self) -> None:
        history = self.history
        with self._open() as disk:
            history.judge(words(disk.read_at(0, SIZE)), 0, _SECTORS, history.done, history.done)
            names = {snapshot.name for snapshot in disk.stored_snapshots or ()}
        if names != set(self._snapshots):
            raise Wrong(f"the snapshots are {sorted(names)}, not {sorted(self._snapshots)}")
        for name, (least, most, zeroed) in self._snapshots.items():
            history.zeroed = zeroed
            with self._open(snapshot=name) as disk:
                found = words(disk.read_at(0, SIZE))
                history.judge(found, 0, _SECTORS, least, most)
                if (found.min(axis=1) != found.max(axis=1)).any():
                    raise Wrong(f"snapshot {name} holds half a write")
        if self._kind.format == "qcow2":
            report = imgtool.check(self.path, format="qcow2")
            if not report.clean:
                raise Wrong(f"check: {report.messages[:5]}")


def hammer(kind: Kind, folder: Path, *, threads: int, operations: int, seed: int = 0) -> Hammer:
    """Hammer one disk, with threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    try:
        sys.setswitchinterval(1e-5)
        one = Hammer(kind, folder)
        one.run(threads, operations, seed)
        return one
    finally:
        sys.setswitchinterval(interval)
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    """The long form."""
    arguments = parser(__doc__)
    arguments.add_argument("--operations", type=int, default=20_000, metavar="N", help="each disk")
    arguments.add_argument("--threads", type=int, default=8, metavar="N")
    arguments.add_argument("names", nargs="*", help="kinds of disk")
    chosen = arguments.parse_args()
    tally = Tally()
    for kind in named(KINDS, chosen.names):
        with tally.attempt(kind.name), scratch() as place:
            done = hammer(
                kind, place, threads=chosen.threads, operations=chosen.operations, seed=chosen.seed
            )
            counts = ", ".join(f"{n} {what}" for what, n in sorted(done.counts.items()))
            print(f"{kind.name}: {chosen.threads} threads: {counts}", flush=True)
            tally.cases[kind.name] = sum(done.counts.values())
    return tally.tell()


if __name__ == "__main__":
    sys.exit(main())
