"""What the report and the chart say of recorded results."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.chart import draw
from benchmarks.judge import highest_peak, verdicts
from benchmarks.model import Measured
from benchmarks.report import render
from benchmarks.results import Results
from benchmarks.rows import BEST_SIZE, IMGTOOL, LIBQCOW, QEMU_IMG, ROWS
from benchmarks.scaling import exponent
from tests.kit.tools import require_tool

MIB = 1 << 20


@pytest.fixture
def results(tmp_path: Path) -> Results:
    require_tool("qemu-img")
    recorded = Results(tmp_path / "results.json")
    fast = Measured([1.0, 2.0, 1.5], [1.0, 1.0, 1.0], 50 * MIB, 109 * MIB)
    best = Measured([5.0, 5.0, 5.0], [1.0, 1.0, 1.0], 90 * MIB, 102 * MIB)
    slow = Measured([10.0, 30.0, 20.0], [1.0, 1.0, 1.0], 300 * MIB, 100 * MIB)
    recorded.put_row("raw-zlib", "full", {IMGTOOL: fast, QEMU_IMG: slow, BEST_SIZE: best})
    reads = Measured([1e-6], [0.0], 400 * MIB, command=False)
    others = Measured([3e-6], [0.0], 400 * MIB, command=False)
    recorded.put_row("random-reads", "full", {IMGTOOL: reads, LIBQCOW: others})
    recorded.put_row("empty-hash", "full", {IMGTOOL: Measured([1.5], [1.0], 10 * MIB)})
    return Results(tmp_path / "results.json")


def test_goals_are_judged_by_medians_and_sizes(results: Results) -> None:
    judged = {(each.row, each.goal.subject, each.goal.baseline): each for each in verdicts(results)}
    fast = judged["raw-zlib", IMGTOOL, QEMU_IMG]
    assert fast.value == pytest.approx(0.075)
    assert (fast.low, fast.high) == pytest.approx((2 / 30, 0.1))
    assert fast.size == pytest.approx(1.09)
    assert fast.reached
    best = judged["raw-zlib", BEST_SIZE, QEMU_IMG]
    assert best.value == pytest.approx(0.25)
    assert best.reached is False, "fast enough, but the file is too large"
    reads = judged["random-reads", IMGTOOL, LIBQCOW]
    assert reads.value == pytest.approx(3)
    assert reads.reached
    assert judged["random-reads", IMGTOOL, QEMU_IMG].reached is None, "qemu-img did not take part"
    assert judged["empty-hash", IMGTOOL, QEMU_IMG].reached is False


def test_the_peak_is_that_of_commands_of_imgtool(results: Results) -> None:
    peak = highest_peak(results)
    assert peak is not None
    assert (peak.row, peak.bytes) == ("raw-zlib", 90 * MIB)
    assert peak.reached


def test_the_report_has_every_row(results: Results) -> None:
    text = render(results)
    for row in ROWS:
        for goal in row.goals:
            assert f"| {goal.text}" in text
    assert (
        "| raw → qcow2 -c (zlib) | ≤ 0.12, file ≤ 1.10 | 0.075 | 0.0667 – 0.1 | 1.090 | yes |"
        in text
    )
    assert "| random 4 KiB reads, in process, next to libqcow-python | ≥ 2 × | 3 × |" in text
    assert "| hash, empty, 64 TiB | ≤ 1 s | 1.5 s | 1.5 s – 1.5 s |  | **no** |" in text
    assert "| raw → qcow2 | ≤ 0.9 | not measured |" in text
    assert "- qemu-img: " in text


def test_the_report_says_what_failed(results: Results) -> None:
    results.put_failure("raw-zlib", "full", "images differ")
    text = render(results)
    assert "| raw → qcow2 -c (zlib) | ≤ 0.12, file ≤ 1.10 | **failed** |" in text
    assert "raw-zlib failed: images differ" in text


def test_the_report_has_the_exponents(results: Results) -> None:
    measured = [["4 GiB", 0.2], ["8 GiB", 0.3]]
    common = {"image": "empty", "grows": "size", "start": 0.1, "measured": measured}
    results.put_scaling(
        [
            {"cost": "check", **common, "exponent": 0.987},
            {"cost": "info", **common, "exponent": None},
        ]
    )
    text = render(results)
    cells = "| empty | size | 100 ms | 4 GiB: 200 ms, 8 GiB: 300 ms |"
    assert f"| check {cells} 0.99 |" in text
    assert f"| info {cells} start only |" in text


def test_the_chart_has_a_bar_for_each_goal_that_was_measured(results: Results) -> None:
    root = ElementTree.fromstring(draw(results))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar.get("class") for bar in root.iter(f"{space}rect")]
    assert bars == ["bar", "late", "bar"]
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "0.075  (13 × faster)" in texts
    assert "random 4 KiB reads, in process (libqcow-python = 1)" in texts
    assert "prefers-color-scheme: dark" in draw(results)


@pytest.mark.parametrize("power", [-0.5, 0.5, 1, 2])
def test_exponents_are_fitted_to_what_lies_beyond_the_start(power: float) -> None:
    sizes = [1, 10, 100, 1000]
    assert exponent(sizes, [0.2 + 0.03 * x**power * 10 for x in sizes], 0.2) == pytest.approx(
        power, abs=1e-6
    )


def test_what_does_not_grow_has_no_exponent() -> None:
    assert exponent([1, 10, 100, 1000], [0.2, 0.204, 0.203, 0.205], 0.2) is None
