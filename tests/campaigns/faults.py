"""The fault sweep: every system call of every command goes wrong, one after the other.

    python -m tests.campaigns.faults                    everything: about 60,000 cases
    python -m tests.campaigns.faults --every 20 commit  one case in twenty of what is called so

For each case: it ends, and no file stays open; an error reaches the caller, or the command has done
all it was to do; images open and pass a check, leaks aside; every sector is old or new; a new file
is whole or removed.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.campaigns.running import Tally, named, parser
from tests.campaigns.scenarios import SCENARIOS
from tests.campaigns.scenarios.model import Scenario
from tests.campaigns.workshop import Outcome, Workshop, Wrong
from tests.kit.calls import FAULTS, FaultyCalls
from tests.kit.scratch import scratch

#: A case that takes longer than this many seconds hangs: the run ends with a traceback.
TIMEOUT = 120

#: What may fail without the command failing: a hint to the host, or what was only read from.
_HINTS = frozenset({"allocate", "seek", "copy", "reserve"})


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def cases(workshop: Workshop) -> Iterator[tuple[str, bool, int]]:
    """The faults to try: which, whether for ever, and at which call."""
    kinds = frozenset({"open", "read", "seek"}) if workshop.scenario.reads else None
    for fault in FAULTS:
        workshop.reset()
        counting = FaultyCalls(workshop.place, fault, kinds=kinds)
        with counting.installed():
            workshop.run()
        for at in range(counting.count):
            yield fault, False, at
            yield fault, True, at


def try_case(workshop: Workshop, fault: str, for_ever: bool, at: int, *, qemu: bool = False) -> str:
    """Try one case; return what is worth noting about it. Raises :class:`Wrong`."""
    kinds = frozenset({"open", "read", "seek"}) if workshop.scenario.reads else None
    workshop.reset()
    calls = FaultyCalls(workshop.place, fault, at, for_ever=for_ever, kinds=kinds)
    before = descriptors()
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    try:
        with calls.installed():
            outcome = workshop.run()
        if descriptors() > before:
            gc.collect()
        if descriptors() > before:
            raise Wrong("a file stayed open")
        return _judge(workshop, fault, for_ever, calls, outcome, qemu)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _judge(
    workshop: Workshop,
    fault: str,
    for_ever: bool,
    calls: FaultyCalls,
    outcome: Outcome,
    qemu: bool,
) -> str:
    if "Traceback" in outcome.err:
        raise Wrong(f"a traceback: {outcome.err}")
    clean = workshop.clean
    # What a file ends with helps to tell its format, and is done without if it cannot be read; so
    # is the directory, held open, that names in the image would begin at.
    hit = set(calls.hit) - _HINTS - ({"read", "open"} if len(calls.hit) == 1 else set())
    harmless = not calls.hit or fault == "short" or (fault == "EINTR" and not for_ever)
    if workshop.scenario.reads:
        if outcome.status == clean.status and outcome.out == clean.out:
            if not harmless and hit and not clean.status:
                raise Wrong(f"no error although {set(calls.hit)} failed")
            return "read all the same"
        if harmless:
            raise Wrong(f"another answer: {outcome}")
        if not outcome.status or not _told(outcome):
            raise Wrong(f"no error: {outcome}")
        if outcome.status == clean.status and workshop.scenario.subcommand == "compare":
            raise Wrong(f"an error looks like a difference: {outcome}")
        return "failed"
    if outcome.status and harmless:
        raise Wrong(f"it failed: {outcome}")
    if not outcome.status and not harmless and hit:
        raise Wrong(f"exit status 0 although {set(calls.hit)} failed")
    if outcome.status and not _told(outcome):
        raise Wrong("it failed without a word")
    notes = workshop.judge(finished=not outcome.status, qemu=qemu)
    return ", ".join(sorted(notes)) or ("failed" if outcome.status else "did it all the same")


def _told(outcome: Outcome) -> bool:
    # Like qemu-io, io says on stdout which of its requests failed.
    return bool(outcome.err.strip()) or "failed" in outcome.out


def sweep(
    scenarios: Sequence[Scenario], *, every: int = 1, seed: int = 0, folder: Path | None = None
) -> Tally:
    """Try the cases of the scenarios: all of them, or one in ``every``, drawn by ``seed``."""
    tally = Tally()
    chance = random.Random(seed)
    for scenario in scenarios:
        with scratch(folder and folder / scenario.name) as place:
            workshop = Workshop(scenario, place)
            for fault, for_ever, at in cases(workshop):
                if chance.randrange(every):
                    continue
                lasting = "for ever" if for_ever else "once"
                tally.count(f"{scenario.subcommand} {fault} {lasting}")
                with tally.attempt(f"{scenario.name}: {fault} {lasting} at call {at}"):
                    qemu = not chance.randrange(20)
                    tally.note(try_case(workshop, fault, for_ever, at, qemu=qemu))
    return tally


def main() -> int:
    """The long form."""
    arguments = parser(__doc__)
    arguments.add_argument("--every", type=int, default=1, metavar="N", help="try one case in N")
    arguments.add_argument("names", nargs="*", help="scenarios, by the beginning of their names")
    chosen = arguments.parse_args()
    scenarios = named(SCENARIOS, chosen.names)
    return sweep(scenarios, every=chosen.every, seed=chosen.seed).tell()


if __name__ == "__main__":
    sys.exit(main())
