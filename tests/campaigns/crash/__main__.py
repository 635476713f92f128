"""The campaign in its long form: ``python -m tests.campaigns.crash --states 2000000 --jobs 2``."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.campaigns.crash.campaign import Tally, try_states
from tests.campaigns.crash.trial import Trial, try_without
from tests.campaigns.crash.workloads import SLOW, WORKLOADS

#: States of one recording.
_SHARE = 300
#: Slow workloads come only every so many rounds.
_SELDOM = 12


class _Task(NamedTuple):
    workload: str
    seed: int
    most: int
    qemu_share: float


def _run(task: _Task) -> Tally:
    return try_states(task.workload, task.seed, task.most, qemu_share=task.qemu_share)


def _tasks(names: list[str], seed: int, qemu_share: float) -> Iterator[_Task]:
    for number in itertools.count(seed):
        for name in names:
            if name in SLOW and number % _SELDOM and len(names) > len(SLOW):
                continue
            yield _Task(name, number, _SHARE, qemu_share)


def main() -> int:
    """Run as many states as are asked for, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.crash", description=__doc__)
    parser.add_argument("--states", type=int, default=2_000_000, help="how many states to try")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the longest it may go")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--seed", type=int, default=1000, help="where the seeds begin")
    parser.add_argument("--workload", action="append", choices=sorted(WORKLOADS), help="only this")
    parser.add_argument("--qemu", type=float, default=0.002, help="part that qemu-img checks too")
    parser.add_argument("--barriers", action="store_true", help="try each barrier's removal")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    names = given.workload or list(WORKLOADS)
    if given.barriers:
        return _barriers(names, given)
    start = time.monotonic()
    tally = Tally()
    with multiprocessing.Pool(given.jobs) as pool:
        for done in pool.imap_unordered(_run, _endless(names, given, tally, start)):
            tally.add(done)
            for finding in done.findings:
                print(f"FINDING {finding}\n", flush=True)
    figures = _figures(tally, time.monotonic() - start)
    _tell(figures, given.json)
    return 1 if tally.findings else 0


def _endless(names: list[str], given: Any, tally: Tally, start: float) -> Iterator[_Task]:
    """Tasks for as long as there are states to try and time to try them."""
    for ahead, task in enumerate(_tasks(names, given.seed, given.qemu)):
        # The pool takes tasks without end: it is given a few more than it can do at once.
        while ahead - tally.recordings > 2 * given.jobs:
            time.sleep(0.02)
        if tally.states >= given.states or time.monotonic() - start > given.seconds:
            return
        yield task


def _figures(tally: Tally, seconds: float) -> dict[str, Any]:
    return {
        "states": tally.states,
        "recordings": tally.recordings,
        "epochs": tally.epochs,
        "repaired": tally.repaired,
        "flags-lagged": tally.flags_lagged,
        "checked-by-qemu": tally.asked_qemu,
        "of-recoveries-cut-short": tally.cut_short,
        "findings": len(tally.findings),
        "seconds": round(seconds, 1),
        "by-workload": dict(tally.by_workload),
    }


def _barriers(names: list[str], given: Any) -> int:
    trials: list[Trial] = []
    for trial in try_without(names, given.seed, jobs=given.jobs):
        trials.append(trial)
        print(f"{trial.barrier:60} {trial.result}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps([trial._asdict() for trial in trials], indent=2) + "\n")
    return 0 if all(trial.caught for trial in trials) else 1


def _tell(figures: dict[str, Any], path: Path | None) -> None:
    for name, value in figures.items():
        print(f"{name}: {value}")
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
