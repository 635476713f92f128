"""A second look at a sample of states: by qemu-img, and with recovery cut short in its turn."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from imgtool.errors import ImageError
from imgtool.ops.check import check
from tests.campaigns.crash.bench import Bench, Disk
from tests.campaigns.crash.judge import StateFile, Wrong, judge
from tests.kit import referee
from tests.kit.crash_states import build, choices, epochs
from tests.kit.recording import SECTOR

#: States of each epoch of a recovery.
_SECOND_STATES = 4


def qemu_disagrees(
    disks: Iterable[Disk], files: Mapping[str, bytearray], position: int
) -> str | None:
    """Let qemu-img check the images of a state; return what it objects to."""
    with tempfile.TemporaryDirectory(prefix="imgtool-crash-") as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        for disk in disks:
            segments = [one.segment for one in disk.history.candidates(position)]
            encrypted = bool(disk.layout.options)
            beyond = any(segment.shape is None or segment.beyond_qemu for segment in segments)
            if disk.layout.format != "qcow2" or encrypted or beyond:
                continue
            data = files[disk.layout.file]
            marked = data[7] >= 3 and data[79] & 1
            damaged = any(segment.damaged for segment in segments)
            path = Path(folder, disk.layout.file)
            repair = ("-r", "all") if marked or damaged else ()
            done = referee.run("qemu-img", "check", "-q", "-f", "qcow2", *repair, path, cwd=folder)
            allowed = {0, 3}
            if any(segment.flags_lag for segment in segments):
                allowed.add(2)
            if done.returncode not in allowed:
                return f"qemu-img check says {done.returncode}: {done.stdout} {done.stderr}"[:2000]
    return None


def cut_short(
    first: Bench, files: Mapping[str, bytearray], position: int, chance: random.Random
) -> tuple[int, str | None]:
    """Open what a state is, write a little, and lose power on the way once more.

    Returns how many states were tried, and what is wrong with the last one.
    """
    bench = Bench(chance.randrange(1 << 30))
    bench.plain, bench.garbage = first.plain, first.garbage
    for name, data in files.items():
        bench.file(name, bytes(data))
    damaged = False
    for disk in first.disks:
        candidates = disk.history.candidates(position)
        damaged |= any(one.segment.damaged for one in candidates)
        if any(one.segment.shape is None for one in candidates):
            return 0, None
        lag = any(one.segment.flags_lag for one in candidates)
        again = Disk(bench, disk.layout, b"", flags_lag=lag)
        again.unreadable = any(one.segment.unreadable for one in candidates)
        again.content[:], _ = again.look()
        bench.disks.append(again)
    bench.start()
    again = bench.disks[-1]
    try:
        if damaged:
            again.command(
                "check -r all",
                lambda: check(again.reference, opener=bench.opener, repair="all"),
                damaged=True,
                flags_lag=again.flags_lag,
            )
        for _ in range(2):
            start = chance.randrange(again.size // SECTOR) * SECTOR
            again.write(start, min(2048, again.size - start))
        again.close()
    except ImageError as error:
        return 0, f"recovery fails: {error}"
    tried = 0
    for epoch in epochs(bench.start_files, bench.log):
        for choice in choices(epoch, chance.randrange(1 << 30), _SECOND_STATES):
            files = build(epoch, bench.possible(choice))
            state = {name: StateFile(name, data) for name, data in files.items()}
            tried += 1
            try:
                judge(state, bench.disks, epoch.position, chance)
            except Wrong as wrong:
                return tried, f"recovery, cut short: {wrong}"
    return tried, None
