"""Runs workloads and tries the states that a loss of power could leave of them."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

from imgtool.formats.qcow2 import metadata
from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.judge import StateFile, Wrong, judge
from tests.campaigns.crash.second import cut_short, qemu_disagrees
from tests.campaigns.crash.workloads import WORKLOADS
from tests.kit.crash_states import Choice, Epoch, build, choices, epochs
from tests.kit.recording import Kind

#: In one recording of so many nothing that has changed waits, so that there is each flush that may
#: come in the middle of a change. Otherwise it takes images larger than these.
_AT_ONCE = 4

#: So many choices in a row that lead to states already seen, and an epoch is exhausted.
_PATIENCE = 24


class Finding(NamedTuple):
    """A state that should not be, and how to see it again."""

    workload: str
    seed: int
    reason: str
    position: int
    choice: Choice
    context: str = ""

    def __str__(self) -> str:
        kept = "".join("x" if one else "." for one in self.choice.kept)
        return (
            f"{self.workload}, seed {self.seed}, at {self.position}: {self.reason}\n"
            f"  kept {kept} torn={self.choice.torn} length={self.choice.length} "
            f"garbage={self.choice.garbage}\n{self.context}"
        )


@dataclass
class Tally:
    """What a campaign has come to."""

    states: int = 0
    recordings: int = 0
    epochs: int = 0
    asked_qemu: int = 0
    cut_short: int = 0
    repaired: int = 0
    flags_lagged: int = 0
    by_workload: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    #: The part of the states of which qemu-img is asked, and whose recovery is cut short.
    qemu_share: float = 0.0
    recovery_share: float = 0.0

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        self.states += other.states
        self.recordings += other.recordings
        self.epochs += other.epochs
        self.asked_qemu += other.asked_qemu
        self.cut_short += other.cut_short
        self.repaired += other.repaired
        self.flags_lagged += other.flags_lagged
        self.by_workload += other.by_workload
        self.findings += other.findings


@dataclass
class _Seen:
    """What a recording has been through: states as a whole, and disks within them."""

    states: set[int] = field(default_factory=set)
    disks: set[int] = field(default_factory=set)


def record(workload: str, seed: int) -> Bench:
    """Run a workload, and return the bench with all that happened."""
    bench = Bench(seed)
    limit = metadata.DIRTY_LIMIT if seed % _AT_ONCE else -1
    with mock.patch.object(metadata, "DIRTY_LIMIT", limit):
        WORKLOADS[workload](bench)
    return bench


def barriers(bench: Bench) -> Counter[str]:
    """How often each barrier of the engine was waited for in a recording."""
    return Counter(change.barrier for change in bench.log.changes if change.kind is Kind.SYNC)


def try_states(
    workload: str,
    seed: int,
    most: int,
    *,
    bench: Bench | None = None,
    without: str | None = None,
    stop_at: int = 1,
    qemu_share: float = 0.0,
    recovery_share: float = 0.01,
) -> Tally:
    """Judge at most about ``most`` different states of a recording, spread over its epochs.

    Stops after ``stop_at`` findings. ``without`` is a barrier that does nothing.
    """
    try:
        bench = bench or record(workload, seed)
    except Exception:
        reason = "the recording itself failed:\n" + traceback.format_exc()
        return Tally(findings=[Finding(workload, seed, reason, 0, Choice(()))], recordings=1)
    tally = Tally(recordings=1, qemu_share=qemu_share, recovery_share=recovery_share)
    seen = _Seen()
    found = list(epochs(bench.start_files, bench.log, without))
    if without is not None:
        found = [epoch for epoch in found if _spans(bench, epoch, found, without)]
    share = max(4, most // max(1, len(found)))
    for number, epoch in enumerate(found):
        tally.epochs += 1
        _try_epoch(tally, bench, workload, seed, epoch, number, share, seen)
        if len(tally.findings) >= stop_at:
            break
    tally.by_workload[workload] = tally.states
    return tally


def _spans(bench: Bench, epoch: Epoch, found: list[Epoch], without: str) -> bool:
    """Whether an epoch is longer for lack of the barrier ``without``."""
    place = found.index(epoch)
    start = found[place - 1].position if place else 0
    return any(
        change.barrier == without for change in bench.log.changes[start : epoch.position + 1]
    )


def _try_epoch(
    tally: Tally,
    bench: Bench,
    workload: str,
    seed: int,
    epoch: Epoch,
    number: int,
    share: int,
    seen: _Seen,
) -> None:
    chance = random.Random(seed * 1000 + number)
    tried = stale = 0
    for choice in choices(epoch, chance.randrange(1 << 30), share * 8):
        choice = bench.possible(choice)
        files = build(epoch, choice)
        mark = hash(tuple((name, bytes(data)) for name, data in sorted(files.items())))
        if mark in seen.states:
            stale += 1
            if stale > _PATIENCE:
                return
            continue
        stale = 0
        seen.states.add(mark)
        tally.states += 1
        tried += 1
        reason = _judge(tally, bench, files, epoch, chance, seen.disks)
        if reason is None:
            reason = _look_twice(tally, bench, epoch, choice, chance)
        if reason is not None:
            tally.findings.append(
                Finding(
                    workload, seed, reason, epoch.position, choice, _context(bench, epoch, choice)
                )
            )
            return
        if tried >= share:
            return


def _judge(
    tally: Tally,
    bench: Bench,
    files: dict[str, bytearray],
    epoch: Epoch,
    chance: random.Random,
    seen: set[int],
) -> str | None:
    state = {name: StateFile(name, data) for name, data in files.items()}
    try:
        verdict = judge(state, bench.disks, epoch.position, chance, seen)
    except Wrong as wrong:
        return str(wrong)
    except Exception:
        return "an exception escaped:\n" + traceback.format_exc()
    tally.repaired += verdict.repaired
    tally.flags_lagged += verdict.flags_lagged
    return None


def _look_twice(
    tally: Tally, bench: Bench, epoch: Epoch, choice: Choice, chance: random.Random
) -> str | None:
    """On a sample of states: ask qemu-img, and cut recovery short in its turn."""
    if chance.random() < tally.qemu_share:
        tally.asked_qemu += 1
        reason = qemu_disagrees(bench.disks, build(epoch, choice), epoch.position)
        if reason is not None:
            return reason
    if chance.random() < tally.recovery_share:
        tried, reason = cut_short(bench, build(epoch, choice), epoch.position, chance)
        tally.cut_short += tried
        tally.states += tried
        return reason
    return None


def _context(bench: Bench, epoch: Epoch, choice: Choice) -> str:
    lines = [f"  {note}" for note in bench.notes]
    lines.append("  under way:")
    for kept, change in zip(choice.kept, epoch.pending, strict=True):
        lines.append(f"    {'x' if kept else '.'} {change}")
    return "\n".join(lines)
