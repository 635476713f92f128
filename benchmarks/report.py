"""Writes RESULTS.md from the recorded results; what the terminal shows is part of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.judge import Verdict, contenders, highest_peak, verdicts
from benchmarks.model import Goal
from benchmarks.results import Results
from benchmarks.rows import PEAK_LIMIT, ROWS

_MIB = 1 << 20

_INTRODUCTION = """\
# How fast imgtool is

Written by `python -m benchmarks` (see CONTRIBUTING.md). Ratios are of wall time, imgtool over
qemu-img or over what is named: medians of runs that alternate, after a warm-up, with the page cache
warm. The spread is that of single runs, each over the run of the other side beside it. Factors
(“×”) are how many times faster imgtool is.
"""

_METHOD = """\
## How it is measured

- The guest's disk: 8 GiB, with ext4 and 3 GiB of the machine's own files, made by `mke2fs -d`.
  Compression, rebase and commit work on a disk of 4 GiB with 1 GiB of files; the overlay changes
  1 GiB of it in pieces of 1 MiB. The reads in process are from 1 GiB of noise.
- Both sides use their own defaults: threads, cache mode (`unsafe` for what convert writes,
  `writeback` elsewhere), offload. What either waits for before it ends is part of its time.
- Before each run what was written before is removed and written back, so that no run pays for
  another. What rebase and commit change is copied anew.
- After the first run of each contender its output is judged: `qemu-img compare` and
  `qemu-img check`, or the same JSON as qemu-img's.
- Peak memory is `ru_maxrss` of the process. It counts pages shared with others, and is never less
  than what the benchmark itself takes, 25 to 50 MiB.
- `qemu-img bench` reads in order, and reports its own time. What is timed in process leaves out the
  start of the interpreter and the opening of the image.
"""


def render(results: Results) -> str:
    """Return RESULTS.md."""
    failures = [
        f"- {name} failed: {reason}\n"
        for name in results.rows
        if (reason := results.failure(name)) is not None
    ]
    parts = [
        _INTRODUCTION,
        *_environments(results),
        "## Goals\n",
        goals_table(results),
        *failures,
        "## Times, memory, sizes\n",
        "Seconds are medians of one call; the memory is the highest of all runs.\n",
        times_table(results),
        *_scaling(results.scaling),
        _METHOD,
    ]
    return "\n".join(parts)


def goals_table(results: Results) -> str:
    """Return the table of goals, one line each."""
    lines = [_goal_line(verdict) for verdict in verdicts(results)]
    peak = highest_peak(results)
    limit = f"≤ {PEAK_LIMIT // _MIB} MiB"
    text = "peak memory of every command"
    if peak is None:
        lines.append((text, limit, "not measured", "", "", ""))
    else:
        measured = f"{peak.bytes / _MIB:.0f} MiB"
        lines.append((text, limit, measured, f"most: {peak.row}", "", _mark(peak.reached)))
    return _table(("Work", "Goal", "Measured", "Spread", "File size", "Reached"), lines)


def _goal_line(verdict: Verdict) -> Sequence[str]:
    goal = verdict.goal
    text = goal.text
    if goal.kind != "seconds" and goal.baseline != "qemu-img":
        text += f", next to {goal.baseline}"
    bound = "≥" if goal.kind == "speed" else "≤"
    wanted = f"{bound} {_amount(goal, goal.limit)}"
    if goal.size is not None:
        wanted += f", file ≤ {goal.size:.2f}"
    if verdict.value is None or verdict.low is None or verdict.high is None:
        return (text, wanted, "**failed**" if verdict.failure else "not measured", "", "", "")
    return (
        text,
        wanted,
        _amount(goal, verdict.value),
        f"{_amount(goal, verdict.low)} – {_amount(goal, verdict.high)}",
        "" if verdict.size is None else f"{verdict.size:.3f}",
        _mark(verdict.reached),
    )


def _amount(goal: Goal, value: float) -> str:
    unit = {"ratio": "", "speed": " ×", "seconds": " s"}[goal.kind]
    return f"{_number(value)}{unit}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _mark(reached: bool | None) -> str:
    return "" if reached is None else "yes" if reached else "**no**"


def times_table(results: Results) -> str:
    """Return the table of what each contender took."""
    lines = []
    for row in ROWS:
        for name, measured in contenders(row.name, results):
            seconds = measured.seconds
            lines.append(
                (
                    row.name,
                    name,
                    _seconds(statistics.median(seconds)),
                    f"{_seconds(min(seconds))} – {_seconds(max(seconds))}",
                    _seconds(statistics.median(measured.cpu)) if measured.command else "",
                    f"{measured.peak / _MIB:.0f} MiB",
                    "" if measured.size is None else f"{measured.size / _MIB:.1f} MiB",
                    str(len(seconds)),
                )
            )
    heads = ("Row", "Who", "Time", "Spread", "Processor time", "Peak memory", "Output", "Runs")
    return _table(heads, lines)


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _environments(results: Results) -> Iterator[str]:
    """Describe the machine: once if all rows come from one, else with the rows of each."""
    groups: dict[str, list[str]] = {}
    for name, row in results.rows.items():
        described = {"date": row["date"], **row["environment"]}
        if row["scale"] != "full":
            described["scale"] = row["scale"]
        text = "".join(f"- {key}: {value}\n" for key, value in described.items())
        groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        if len(groups) > 1:
            yield f"{', '.join(names)}:\n"
        yield text


def _scaling(scaling: dict[str, Any] | None) -> Iterator[str]:
    if scaling is None:
        return
    yield "## How costs grow\n"
    yield (
        "Times of imgtool's commands, the best of a few runs, while one thing grows. In the\n"
        "column “1 MiB” is the same command on an empty disk of that size; the exponent is that\n"
        "of the time beyond it (least squares in logarithms): 0 does not grow, 1 grows in\n"
        "proportion.\n"
        f"Measured on {scaling['date']}.\n"
    )
    yield _table(
        ("Cost", "Image", "What grows", "1 MiB", "Measured", "Exponent"),
        [
            (
                series["cost"],
                series["image"],
                series["grows"],
                _seconds(series["start"]),
                ", ".join(f"{label}: {_seconds(value)}" for label, value in series["measured"]),
                "start only" if series["exponent"] is None else f"{series['exponent']:.2f}",
            )
            for series in scaling["series"]
        ],
    )


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
