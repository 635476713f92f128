"""Executions by the thousand, in processes of their own, with what was found made small.

Everything is decided by the campaign's seed and the number of the execution, so that each can be
had again, whatever became of the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import random
import re
import resource
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from tests.kit.fuzz.chaining import chain
from tests.kit.fuzz.mutate import Mutator
from tests.kit.fuzz.reading import Outcome, explore
from tests.kit.fuzz.recipe import Recipe
from tests.kit.fuzz.rules import MEMORY, TooSlow, status
from tests.kit.fuzz.subject import Subject
from tests.kit.fuzz.writing import change


def _read(subject: Subject, image: bytes, seed: int) -> Outcome:
    return explore(subject, image, probe=bool(seed & 1))


#: What may be done to an image, as a number says.
KINDS: Mapping[str, Callable[[Subject, bytes, int], Outcome]] = {
    "read": _read,
    "write": change,
    "chain": chain,
}

#: What one process goes through before another takes its place.
_CHUNK = 500
_CHUNK_SECONDS = 30.0

#: Seconds of the clock after which a process is taken to hang, however busy the machine is.
_PATIENCE = 600.0

#: Executions before the first that counts, so that every process begins with the same modules.
_WARM_UP = 12

#: Larger seeds are taken less often: half as often at this size.
_USUAL = 256 << 10


class Finding(NamedTuple):
    """A rule that an execution broke: which, where, and how to have it again."""

    target: str
    number: int
    signature: str
    trace: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """A name for the corpus."""
        return f"{self.target}-{hashlib.sha256(self.signature.encode()).hexdigest()[:8]}"


@dataclass
class Tally:
    """How many executions there were, and how they ended."""

    executions: int = 0
    refused_at_once: int = 0
    whole: int = 0
    slowest: float = 0.0
    slowest_number: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def add(self, outcome: Outcome, number: int) -> None:
        """Count one more."""
        self.executions += 1
        self.refused_at_once += not outcome.opened
        self.whole += outcome.whole
        if outcome.seconds > self.slowest:
            self.slowest, self.slowest_number = outcome.seconds, number

    def merge(self, other: Tally) -> None:
        """Add what another process has counted."""
        self.executions += other.executions
        self.refused_at_once += other.refused_at_once
        self.whole += other.whole
        if other.slowest > self.slowest:
            self.slowest, self.slowest_number = other.slowest, other.slowest_number
        known = {finding.signature for finding in self.findings}
        self.findings += [found for found in other.findings if found.signature not in known]


@dataclass(frozen=True)
class Target:
    """A subject and what is done to its images: one of :data:`KINDS`."""

    subject: Subject
    kind: str

    @property
    def name(self) -> str:
        return f"{self.subject.format}-{self.kind}"

    def recipe(self, campaign: str, number: int) -> Recipe:
        """The image of execution ``number`` of a campaign."""
        chance = random.Random(f"{self.name}/{campaign}/{number}")
        seed = _choose(self.subject, chance)
        edits, length = _mutator(self.subject, seed).mutate(chance)
        return Recipe(self.subject.format, seed, edits, length, chance.getrandbits(32))

    def execute(self, recipe: Recipe) -> Outcome:
        """Do what the target does; raises whatever breaks a rule."""
        subject = self.subject
        image = recipe.apply(subject.image(recipe.seed), subject.fields(recipe.seed))
        return KINDS[self.kind](subject, image, recipe.operations)


def targets(subjects: Iterable[Subject]) -> dict[str, Target]:
    """All targets, by name."""
    found = [Target(subject, kind) for subject in subjects for kind in KINDS]
    return {target.name: target for target in found}


def signature(error: BaseException) -> str:
    """What is the same of two errors that have one cause: its kind, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        f"{os.path.basename(frame.filename)}:{frame.name}"
        for frame in frames
        if "/imgtool/" in frame.filename or "/tests/" in frame.filename
    ]
    text = re.sub(r"0x[0-9a-f]+|\d+", "N", str(error))[:80]
    return f"{type(error).__name__} {text} {' '.join(where[-2:])}"


def run(
    target: Target,
    campaign: str,
    *,
    count: int | None = None,
    seconds: float | None = None,
    jobs: int = 1,
    tell: Callable[[Tally], None] | None = None,
) -> Tally:
    """Run ``count`` executions, or as many as there are ``seconds`` of the clock for."""
    start = time.monotonic()
    whole = Tally()
    context: Any = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[Any, Any, range, float]] = {}
    numbers = _chunks(count)
    #: What processes did not come to before their time was up.
    again: deque[range] = deque()
    _warm_up(target)

    def following() -> range | None:
        if seconds is not None and time.monotonic() - start >= seconds:
            return None
        return again.popleft() if again else next(numbers, None)

    while True:
        while len(running) < jobs and (chunk := following()) is not None:
            until = None if seconds is None else start + seconds
            receiver, sender = context.Pipe(duplex=False)
            current = context.Value("Q", chunk.start)
            process = context.Process(
                target=_work, args=(target, campaign, chunk, until, current, sender)
            )
            process.start()
            sender.close()
            running[receiver] = (process, current, chunk, time.monotonic())
        if not running:
            break
        for ready in wait(list(running), timeout=5):
            assert isinstance(ready, Connection)
            process, current, chunk, _ = running.pop(ready)
            try:
                tally, reached = ready.recv()
                whole.merge(tally)
            except EOFError:
                process.join()
                reached = current.value + 1
                whole.merge(_lost(target, campaign, current.value, f"exit {process.exitcode}"))
            process.join()
            if reached < chunk.stop:
                again.append(range(reached, chunk.stop))
            ready.close()
            whole.seconds = time.monotonic() - start
            if tell is not None:
                tell(whole)
        for process, _, _, began in running.values():
            if time.monotonic() - began > _PATIENCE:
                process.kill()
    whole.seconds = time.monotonic() - start
    return whole


def _chunks(count: int | None) -> Iterator[range]:
    """What one process is given at a time: all numbers, or the first ``count``."""
    for first in itertools.count(0, _CHUNK):
        if count is not None and first >= count:
            return
        yield range(first, first + _CHUNK if count is None else min(first + _CHUNK, count))


def _work(
    target: Target,
    campaign: str,
    chunk: range,
    until: float | None,
    current: Any,
    sender: Connection,
) -> None:
    resource.setrlimit(
        resource.RLIMIT_AS,
        (status("VmSize") + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]),
    )
    tally, start, reached = Tally(), time.monotonic(), chunk.start
    for number in chunk:
        now = time.monotonic()
        if until is not None and now > until:
            break
        if number > chunk.start and now - start > _CHUNK_SECONDS:
            break
        reached = number + 1
        current.value = number
        recipe = target.recipe(campaign, number)
        try:
            tally.add(target.execute(recipe), number)
        except BaseException as error:
            tally.executions += 1
            if all(signature(error) != found.signature for found in tally.findings):
                tally.findings.append(_smaller(target, number, recipe, error))
    sender.send((tally, reached))
    sender.close()
    os._exit(0)


def _smaller(target: Target, number: int, recipe: Recipe, error: BaseException) -> Finding:
    """Leave out of the recipe whatever the error does without."""
    wanted, trace = signature(error), "".join(traceback.format_exception(error))
    for edit in recipe.edits:
        smaller = replace(recipe, edits=tuple(other for other in recipe.edits if other != edit))
        if _fails(target, smaller) == wanted:
            recipe = smaller
    if recipe.length is not None and _fails(target, replace(recipe, length=None)) == wanted:
        recipe = replace(recipe, length=None)
    return Finding(target.name, number, wanted, trace, recipe)


def _fails(target: Target, recipe: Recipe) -> str | None:
    try:
        target.execute(recipe)
    except BaseException as error:
        return signature(error)
    return None


def _lost(target: Target, campaign: str, number: int, what: str) -> Tally:
    """What is known of an execution that took its process with it."""
    found = Finding(
        target.name, number, f"the process died: {what}", "", target.recipe(campaign, number)
    )
    return Tally(executions=1, findings=[found])


def _warm_up(target: Target) -> None:
    """Import everything, and make the seeds, before processes are forked."""
    for seed in target.subject.seeds:
        _mutator(target.subject, seed)
    for number in range(_WARM_UP):
        # What there is to be found is found again, in the campaign.
        with contextlib.suppress(Exception, TooSlow):
            target.execute(target.recipe("warm-up", number))


@cache
def _mutator(subject: Subject, seed: str) -> Mutator:
    return Mutator(subject.image(seed), subject.fields(seed))


@cache
def _weights(subject: Subject) -> tuple[list[str], list[float]]:
    names = list(subject.seeds)
    return names, [1 / (1 + len(subject.image(name)) / _USUAL) for name in names]


def _choose(subject: Subject, chance: random.Random) -> str:
    names, weights = _weights(subject)
    return chance.choices(names, weights)[0]
