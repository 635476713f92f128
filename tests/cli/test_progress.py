"""What ``-p`` shows."""

from __future__ import annotations

import json
import re

import pytest

from imgtool.cli import progress
from imgtool.progress import Throttled


def _steps(count: int) -> list[tuple[int, int]]:
    return [(done, count) for done in range(count + 1)]


def test_percentages(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("human") as report:
        assert report is not None
        for done, total in _steps(1000):
            report(done, total)
    printed = capsys.readouterr().out
    assert printed.startswith("    (0.00/100%)\r    (1.00/100%)\r    (2.00/100%)\r")
    assert printed.endswith("    (99.00/100%)\r    (100.00/100%)\r\n")
    assert printed.count("\r") == 101


def test_percentages_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("human"):
        pass
    assert capsys.readouterr().out == "    (0.00/100%)\r    (100.00/100%)\r\n"


def test_percentages_of_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="full"), progress.shown("human"):
        raise OSError("full")
    assert capsys.readouterr().out == "    (0.00/100%)\r\n"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("json") as report:
        assert report is not None
        for done, total in _steps(1000):
            report(done, total)
    printed = capsys.readouterr()
    assert printed.out == ""
    steps = [json.loads(line) for line in printed.err.splitlines()]
    assert {frozenset(step) for step in steps} == {frozenset(("done", "total", "elapsed"))}
    assert (steps[0]["done"], steps[-1]["done"]) == (0, 1000)
    assert len(steps) < 1000


def test_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(None) as report:
        assert report is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress.shown("human") as report:
        assert report is not None
        report(0, 1 << 30)
        report(1 << 30, 1 << 30)
    lines = capsys.readouterr().out.replace("\x1b[K", "").split("\r")
    assert lines[-1].endswith("\n")
    assert max(len(line.rstrip("\n")) for line in lines) < columns
    if columns >= 60:
        assert re.search(r"100\.0%  1 GiB of 1 GiB, .*/s$", lines[-1].rstrip())


def test_throttled() -> None:
    calls: list[tuple[int, int]] = []
    throttled = Throttled(lambda done, total: calls.append((done, total)), interval=3600)
    for done, total in _steps(100):
        throttled(done, total)
    assert calls == [(0, 100), (100, 100)]
