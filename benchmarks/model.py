"""What a benchmark is made of: contenders that run in turn, and goals for what they took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.inputs import Inputs

#: A program's path and its arguments.
Command = Sequence[str]


def nothing() -> None:
    """Nothing to prepare, nothing to verify."""


@dataclass(frozen=True)
class Contender:
    """Somebody who does a row's work."""

    name: str
    #: One run is all of these, one after the other; its time is theirs, divided by ``per``.
    commands: Sequence[Command]
    per: int = 1
    #: Called before each run, outside the timing.
    prepare: Callable[[], None] = nothing
    #: Called after the first run, outside the timing: raises if what the run did is wrong.
    verify: Callable[[], None] = nothing
    #: What a run leaves behind. All are removed after it; the first is the one whose size counts.
    outputs: Sequence[Path] = ()
    #: Reads the seconds of a command from what it printed. None: its wall time counts.
    clock: Callable[[str], float] | None = None
    #: A package of Python that must be installed, or the contender stays out.
    requires: str | None = None


@dataclass(frozen=True)
class Goal:
    """What the issue of speed asks of one contender, next to another.

    ``ratio``: the subject's time is at most ``limit`` times the baseline's. ``speed``: the subject
    does at least ``limit`` times what the baseline does in the same time. ``seconds``: the subject
    takes at most ``limit`` seconds, and there is no baseline.
    """

    text: str
    kind: Literal["ratio", "speed", "seconds"]
    limit: float
    subject: str = "imgtool"
    baseline: str = "qemu-img"
    #: The subject's output has at most this many times the size of the baseline's.
    size: float | None = None


@dataclass(frozen=True)
class Row:
    """Work that several contenders do in turn."""

    name: str
    contenders: Callable[[Inputs], Sequence[Contender]]
    goals: Sequence[Goal]


@dataclass
class Measured:
    """What a contender took: one element a run in each list; ``peak`` is the most of all runs."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    #: Bytes of memory.
    peak: int = 0
    #: Bytes of the output, if there is one.
    size: int | None = None
    #: Whether it is a command, timed from its start to its end.
    command: bool = True
