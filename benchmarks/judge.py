"""Goals next to what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.model import Goal, Measured
from benchmarks.results import Results
from benchmarks.rows import PEAK_LIMIT, ROWS


@dataclass(frozen=True)
class Verdict:
    """One goal. ``value``, ``low`` and ``high`` are None if it was not measured.

    ``low`` and ``high`` are of the single runs, each next to the baseline's run beside it.
    """

    row: str
    goal: Goal
    value: float | None = None
    low: float | None = None
    high: float | None = None
    #: The size of the subject's output over that of the baseline's.
    size: float | None = None
    #: Why the row could not be run.
    failure: str | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached, its size included."""
        if self.value is None:
            return None
        limit = self.goal.limit
        fast = self.value >= limit if self.goal.kind == "speed" else self.value <= limit
        return fast and (self.size is None or self.goal.size is None or self.size <= self.goal.size)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Judge every goal of the table, in its order."""
    for row in ROWS:
        for goal in row.goals:
            yield _judge(row.name, goal, results)


def _judge(row: str, goal: Goal, results: Results) -> Verdict:
    subject = results.contender(row, goal.subject)
    if subject is None:
        return Verdict(row, goal, failure=results.failure(row))
    if goal.kind == "seconds":
        seconds = subject.seconds
        return Verdict(row, goal, statistics.median(seconds), min(seconds), max(seconds))
    baseline = results.contender(row, goal.baseline)
    if baseline is None:
        return Verdict(row, goal)
    over, under = (subject, baseline) if goal.kind == "ratio" else (baseline, subject)
    pairs = [one / other for one, other in zip(over.seconds, under.seconds, strict=True)]
    return Verdict(
        row,
        goal,
        statistics.median(over.seconds) / statistics.median(under.seconds),
        min(pairs),
        max(pairs),
        subject.size / baseline.size if goal.size and subject.size and baseline.size else None,
    )


@dataclass(frozen=True)
class Peak:
    """The command of imgtool that took the most memory, in bytes."""

    row: str
    bytes: int

    @property
    def reached(self) -> bool:
        """Whether it is within what is allowed."""
        return self.bytes <= PEAK_LIMIT


def highest_peak(results: Results) -> Peak | None:
    """Return the highest peak of all rows that were measured."""
    peaks = [
        Peak(row.name, measured.peak)
        for row in ROWS
        for name, measured in contenders(row.name, results)
        if measured.command and name.startswith("imgtool")
    ]
    return max(peaks, key=lambda peak: peak.bytes, default=None)


def contenders(row: str, results: Results) -> Iterator[tuple[str, Measured]]:
    """Give what was measured of each contender of a row."""
    for name in results.rows.get(row, {}).get("contenders", {}):
        measured = results.contender(row, name)
        if measured is not None:
            yield name, measured
