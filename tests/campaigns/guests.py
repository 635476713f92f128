"""A guest's writes with a fault among them: what is acknowledged, what is flushed, what goes on.

    python -m tests.campaigns.guests              every call of every kind of disk
    python -m tests.campaigns.guests --every 10   one case in ten

Unlike a command, which ends, a guest goes on after an error. Every write puts its own number into
its sectors, so that each sector tells which write it shows.
"""

from __future__ import annotations

import faulthandler
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import imgtool
from tests.campaigns.faults import TIMEOUT
from tests.campaigns.running import Tally, parser
from tests.campaigns.scenarios.folders import ANY, FAST, PASSWORD
from tests.campaigns.workshop import Wrong
from tests.kit.calls import FAULTS, FaultyCalls
from tests.kit.scratch import scratch

SECTOR = 512
SIZE = 512 << 10
_SECTORS = SIZE // SECTOR

#: The kinds of disk: format, and options of the image.
DISKS: dict[str, tuple[str, dict[str, object]]] = {
    "raw": ("raw", {}),
    "luks": ("luks", dict(FAST)),
    "512": ("qcow2", {"cluster_size": 512}),
    "4k": ("qcow2", {"cluster_size": 4096}),
    "64k": ("qcow2", {}),
    "extended": ("qcow2", {"extended_l2": True, "cluster_size": 16384}),
    "v2": ("qcow2", {"compat": "0.10", "cluster_size": 4096}),
    "refcount64": ("qcow2", {"refcount_bits": 64, "cluster_size": 512}),
    "data-file": ("qcow2", {"data_file": "guest.data", "cluster_size": 4096}),
}


class Guest:
    """Writes to the image at ``path``, and knows what each sector may show afterwards.

    ``current`` are the numbers that a sector may show by what was acknowledged, ``durable`` those
    it may show if all that has not been flushed is lost.
    """

    def __init__(self, path: Path, format: str, seed: int) -> None:
        self._path = path
        self._format = format
        self._password = PASSWORD if format == "luks" else None
        self._chance = random.Random(seed)
        self.current: list[set[int]] = [{0} for _ in range(_SECTORS)]
        self.durable = [set(one) for one in self.current]
        self.errors = 0
        self.number = 0

    def run(self, requests: int, calls: FaultyCalls | None = None) -> None:
        """Open the disk, make ``requests``, and close it. Raises :class:`Wrong`."""
        try:
            disk = imgtool.open(
                self._path, format=self._format, writable=True, password=self._password, policy=ANY
            )
        except OSError:
            self.errors += 1
            return
        failed_flush = False
        try:
            for _ in range(requests):
                kind = self._chance.choice(("write", "write", "write", "zero", "flush"))
                struck = len(calls.hit) if calls else 0
                try:
                    if kind == "flush":
                        disk.flush()
                        self._flushed()
                    else:
                        self._write(disk, kind)
                        if failed_flush:
                            self._refused(disk)
                except OSError:
                    self.errors += 1
                    failed_flush |= calls is not None and "sync" in calls.hit[struck:]
        finally:
            try:
                disk.close()
                self._flushed()
            except OSError:
                self.errors += 1

    def _refused(self, disk: imgtool.BlockDevice) -> None:
        # What only changes the mapping may wait in memory, but never becomes durable.
        try:
            disk.flush()
        except OSError:
            return
        raise Wrong("a flush succeeds after one that failed")

    def _write(self, disk: imgtool.BlockDevice, kind: str) -> None:
        first = self._chance.randrange(_SECTORS)
        end = min(_SECTORS, first + self._chance.choice((1, 3, 8, 100)))
        self.number += 1
        number = 0 if kind == "zero" else self.number
        for sector in range(first, end):
            self.current[sector].add(number)
            self.durable[sector].add(number)
        if kind == "zero":
            disk.write_zeroes(first * SECTOR, (end - first) * SECTOR, unmap=number % 2 == 0)
        else:
            data = np.full((end - first) * SECTOR // 8, number, np.int64).tobytes()
            disk.write_at(first * SECTOR, data)
        for sector in range(first, end):
            self.current[sector] = {number}

    def _flushed(self) -> None:
        self.durable = [set(one) for one in self.current]

    def judge(self) -> None:
        """Read everything back, without faults. Raises :class:`Wrong`."""
        with imgtool.open(
            self._path, format=self._format, password=self._password, policy=ANY
        ) as disk:
            found = np.frombuffer(disk.read_at(0, SIZE), np.int64).reshape(_SECTORS, -1)
        for sector in range(_SECTORS):
            shown = int(found[sector, 0])
            if (found[sector] != shown).any() or shown not in self.durable[sector]:
                raise Wrong(f"sector {sector} shows {shown}, not one of {self.durable[sector]}")
            self.current[sector], self.durable[sector] = {shown}, {shown}
        if self._format == "qcow2":
            report = imgtool.check(self._path, format="qcow2")
            if report.corruptions or report.check_errors:
                raise Wrong(f"check: {report.messages[:5]}")


def try_guest(
    folder: Path,
    options: Mapping[str, object],
    format: str,
    fault: str,
    at: int | None,
    *,
    for_ever: bool,
    seed: int,
) -> FaultyCalls:
    """Let a guest write to a new image, with one fault (none for ``at`` None); then once more."""
    path = folder / "guest.image"
    password = PASSWORD if format == "luks" else None
    imgtool.create(path, SIZE, format=format, password=password, **options)  # type: ignore[arg-type]
    if format == "luks":
        with imgtool.open(path, format=format, writable=True, password=password) as disk:
            disk.write_zeroes(0, SIZE)
    guest = Guest(path, format, seed)
    guest.run(10)
    kinds = frozenset({"write", "truncate", "allocate", "sync", "read"})
    calls = FaultyCalls(folder, fault, at, for_ever=for_ever, kinds=kinds)
    with calls.installed():
        guest.run(25, calls)
    hard = fault in ("EIO", "ENOSPC", "torn") or (fault == "EINTR" and for_ever)
    if hard and set(calls.hit) & {"write", "sync", "truncate"} and not guest.errors:
        raise Wrong(f"nobody was told that {set(calls.hit)} failed")
    guest.judge()
    # What could not be read or written is there for whoever comes next.
    guest.run(10)
    guest.judge()
    return calls


def sweep(disk: str, folder: Path, *, every: int = 1, seed: int = 0) -> Tally:
    """Try every fault at every call of a guest's on one kind of disk, or one in ``every``."""
    tally = Tally()
    chance = random.Random(f"{disk} {seed}")
    kind, options = DISKS[disk]
    for fault in FAULTS:
        usual = try_guest(folder, options, kind, fault, None, for_ever=False, seed=seed)
        for at in range(usual.count):
            for for_ever in (False, True):
                if chance.randrange(every):
                    continue
                lasting = "for ever" if for_ever else "once"
                tally.count(f"{disk} {fault} {lasting}")
                faulthandler.dump_traceback_later(TIMEOUT, exit=True)
                with tally.attempt(f"{disk}: {fault} {lasting} at call {at}"):
                    try_guest(folder, options, kind, fault, at, for_ever=for_ever, seed=seed)
                faulthandler.cancel_dump_traceback_later()
    return tally


def main() -> int:
    """The long form."""
    arguments = parser(__doc__)
    arguments.add_argument("--every", type=int, default=1, metavar="N", help="try one case in N")
    chosen = arguments.parse_args()
    bad = 0
    for disk in DISKS:
        with scratch() as place:
            bad |= sweep(disk, place, every=chosen.every, seed=chosen.seed).tell()
    return bad


if __name__ == "__main__":
    sys.exit(main())
