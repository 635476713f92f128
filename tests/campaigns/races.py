"""Races for an image: two start at the same moment, and exactly one may have it.

    python -m tests.campaigns.races --races 100

Of two writers, of a reader and a writer, and of two who create the same file, exactly one wins; two
readers both do. Against qemu-io, too.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imgtool
from imgtool import InUse
from imgtool.storage.file import FileStorage
from tests.campaigns.running import Tally, parser
from tests.campaigns.workshop import Wrong
from tests.kit.scratch import scratch
from tests.kit.tools import require_tool

#: Nobody takes so many seconds to find out whether it may have a file.
TIMEOUT = 60

Opener = Callable[[Path], FileStorage]


def _read(path: Path) -> FileStorage:
    return FileStorage.open(path)


def _write(path: Path) -> FileStorage:
    return FileStorage.open(path, writable=True)


def _create(path: Path) -> FileStorage:
    return FileStorage.create(path)


#: The two that start, and how many of them win.
RACES: dict[str, tuple[Opener, Opener, int]] = {
    "two readers": (_read, _read, 2),
    "two writers": (_write, _write, 1),
    "reader and writer": (_read, _write, 1),
    "two creators": (_create, _create, 1),
    "writer and creator": (_write, _create, 1),
}


class _Runner:
    """A child that opens the file at a given moment, says if it won, and then waits."""

    def __init__(self, opener: Opener, path: Path, moment: float) -> None:
        report, told = os.pipe()
        release, self._release = os.pipe()
        self.report = report
        self.child = os.fork()
        if self.child:
            os.close(told)
            os.close(release)
            return
        os.close(self._release)
        try:
            while time.monotonic() < moment:
                pass
            try:
                storage = opener(path)
            except InUse:
                os.write(told, b"-")
            else:
                os.write(told, b"+")
                select.select([release], [], [], TIMEOUT)
                storage.close()
        except BaseException as error:
            os.write(told, repr(error).encode())
        finally:
            os._exit(0)

    def won(self) -> bool:
        """Wait for what the child says."""
        if not select.select([self.report], [], [], TIMEOUT)[0]:
            raise Wrong("it hangs")
        said = os.read(self.report, 1000)
        if said not in (b"+", b"-"):
            raise Wrong(f"it ended otherwise: {said!r}")
        return said == b"+"

    def end(self) -> None:
        # The other child has this end as well, so closing it would not be noticed.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._release, b"x")
        os.close(self._release)
        os.close(self.report)
        os.waitpid(self.child, 0)


def race(kind: str, path: Path) -> None:
    """Let two start at once; raises :class:`Wrong` unless as many win as may."""
    first, second, winners = RACES[kind]
    moment = time.monotonic() + 0.01
    runners = [_Runner(opener, path, moment) for opener in (first, second)]
    try:
        found = sum([runner.won() for runner in runners])
    finally:
        for runner in runners:
            runner.end()
    if found != winners:
        raise Wrong(f"{kind}: {found} won, not {winners}")


def race_qemu(path: Path, delay: float) -> str:
    """Let qemu-io and a writer race for a qcow2 image; return who won."""
    command = [require_tool("qemu-io"), "-f", "qcow2", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        runner = _Runner(_write, path, time.monotonic() + delay)
        try:
            ours = runner.won()
            assert process.stdout is not None
            said = process.stdout.read(8)
            theirs = said == b"qemu-io>"
        finally:
            runner.end()
            assert process.stdin is not None
            process.stdin.close()
    if ours == theirs:
        raise Wrong(f"imgtool and qemu-io: both {'won' if ours else 'lost'}")
    return "imgtool" if ours else "qemu-io"


def campaign(races: int, folder: Path, *, seed: int = 0) -> Tally:
    """``races`` of each kind."""
    tally = Tally()
    chance = random.Random(seed)
    path = folder / "image.qcow2"
    for kind in [*RACES, "qemu-io"]:
        imgtool.create(path, "1M", format="qcow2")
        for _ in range(races):
            tally.count(kind)
            with tally.attempt(kind):
                if kind == "qemu-io":
                    tally.note(f"{race_qemu(path, chance.uniform(0, 0.08))} won")
                else:
                    race(kind, path)
    return tally


def main() -> int:
    """The long form."""
    arguments = parser(__doc__)
    arguments.add_argument("--races", type=int, default=100, metavar="N", help="of each kind")
    chosen = arguments.parse_args()
    with scratch() as place:
        return campaign(chosen.races, place, seed=chosen.seed).tell()


if __name__ == "__main__":
    sys.exit(main())
