"""The test of the tests: with any one barrier gone, some state must be wrong."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import NamedTuple

from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.campaign import barriers, record, try_states
from tests.campaigns.crash.workloads import SLOW

#: Recordings of each workload in which a barrier is looked for, and states of each recording.
_SEEDS = 20
_STATES = 400
#: Slow ones are recorded less often, and more often those whose barriers most images do without.
_OTHER_SEEDS = {**dict.fromkeys(SLOW, 4), "repair": 80}


class Trial(NamedTuple):
    """What came of taking one barrier away: how it was caught, or how often it was not."""

    barrier: str
    caught: bool
    states: int
    result: str


def find_barriers(names: list[str], seed: int) -> dict[str, list[tuple[str, int]]]:
    """Every barrier that is waited for, with the recordings in which it is."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name in names:
        for number in range(seed, seed + _OTHER_SEEDS.get(name, _SEEDS)):
            for barrier in barriers(record(name, number)):
                found.setdefault(barrier, []).append((name, number))
    return found


def try_one(barrier: str, places: list[tuple[str, int]], states: int = _STATES) -> Trial:
    """Take one barrier away in one recording after the other, until a state is wrong."""
    tried = 0
    for name, seed in places:
        bench: Bench = record(name, seed)
        tally = try_states(name, seed, states, bench=bench, without=barrier, recovery_share=0.0)
        tried += tally.states
        if tally.findings:
            reason = tally.findings[0].reason.splitlines()[0][:160]
            return Trial(barrier, True, tried, f"caught: {name} {seed}: {reason}")
    return Trial(barrier, False, tried, f"NOT CAUGHT in {tried} states of {len(places)} recordings")


def _try(task: tuple[str, list[tuple[str, int]]]) -> Trial:
    return try_one(*task)


def try_without(names: list[str], seed: int, *, jobs: int = 2) -> Iterator[Trial]:
    """Take every barrier away in its turn."""
    found = find_barriers(names, seed)
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(_try, sorted(found.items()))
