"""The table of the benchmarks runs, and a wrong result does not pass."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

import benchmarks.__main__ as program
from benchmarks.inprocess import main as measure_in_process
from benchmarks.inputs import Inputs
from benchmarks.model import Contender, Goal, Row
from benchmarks.results import Results
from benchmarks.rows import ROWS
from benchmarks.runner import compete, run
from benchmarks.scaling import all_series
from tests.benchmarks.conftest import TINY

pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_spawn"), reason="benchmarks run on Linux and macOS"
)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_goal_is_of_contenders_of_its_row(row: Row, tiny: Inputs) -> None:
    names = {contender.name for contender in row.contenders(tiny)}
    for goal in row.goals:
        assert goal.subject in names
        assert goal.kind == "seconds" or goal.baseline in names


def test_rows_of_a_quick_run_are_recorded_and_reported(
    tiny: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "QUICK", TINY)
    common = ["--quick", "--inputs", str(tiny.folder.parent), "--results", str(tmp_path)]
    assert program.main([*common, "--only", "raw-qcow2", "commit"]) == 0
    first = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert program.main([*common, "--only", "map", "--runs", "2"]) == 0
    second = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert set(second) == {"raw-qcow2", "commit", "map"}
    assert second["commit"] == first["commit"]
    for contender in second["map"]["contenders"].values():
        assert len(contender["seconds"]) == 2
        assert min(contender["seconds"]) > 0
        assert contender["peak"] > 1 << 20
    sizes = [each["size"] for each in first["raw-qcow2"]["contenders"].values()]
    assert min(sizes) > TINY.content // 2
    assert max(sizes) <= min(sizes) * 1.1
    assert "raw → qcow2 | ≤ 0.9 | " in (tmp_path / "RESULTS.md").read_text()
    assert "raw → qcow2" in (tmp_path / "chart.svg").read_text()
    assert not list(tiny.folder.glob("output*"))


def test_a_wrong_output_fails_the_row_and_drops_its_figures(tiny: Inputs, tmp_path: Path) -> None:
    def contenders(inputs: Inputs) -> list[Contender]:
        (right,) = (each for each in ROWS[0].contenders(inputs) if each.name == "qemu-img")
        wrong = ["/bin/cp", str(inputs.dense_qcow2), str(right.outputs[0])]
        return [Contender("imgtool", [wrong], outputs=right.outputs, verify=right.verify)]

    results = Results(tmp_path / "results.json")
    row = Row("raw-qcow2", ROWS[0].contenders, ROWS[0].goals)
    assert program.run_rows([row], tiny, results, 1)
    assert results.contender("raw-qcow2", "imgtool") is not None
    assert not program.run_rows([Row(row.name, contenders, row.goals)], tiny, results, 1)
    again = Results(tmp_path / "results.json")
    assert again.contender("raw-qcow2", "imgtool") is None
    assert "compare" in str(again.failure("raw-qcow2"))


def test_contenders_take_turns_each_with_its_output_gone(tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "output"

    def contender(name: str) -> Contender:
        script = f"test ! -e {output} && echo {name} | tee -a {log} > {output}"
        return Contender(name, [["/bin/sh", "-c", script]], outputs=[output])

    absent = Contender("c", [["/bin/false"]], requires="no_such_package")
    results = compete([contender("a"), contender("b"), absent], runs=2, warm_ups=1, settle=False)
    assert log.read_text().split() == ["a", "b"] * 3
    assert {name: len(result.seconds) for name, result in results.items()} == {"a": 2, "b": 2}
    assert not output.exists()


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: oh"):
        run(["/bin/sh", "-c", "echo oh >&2; exit 3"])
    with pytest.raises(RuntimeError, match=r"ended with -9"):
        run(["/bin/sh", "-c", "kill -9 $$"])


def test_the_time_of_a_child_is_measured() -> None:
    assert 0.2 <= run(["/bin/sleep", "0.2"]).seconds < 10
    busy = run(["/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $i"])
    assert busy.printed == "200000\n"
    assert busy.cpu > 0.01


@pytest.mark.parametrize("reader", ["imgtool", "libqcow", "dissect"])
def test_reads_in_process_are_compared_with_the_raw_file(
    reader: str, tiny: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = {"imgtool": "imgtool", "libqcow": "pyqcow", "dissect": "dissect"}[reader]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (it comes with the extra bench)")
    image, raw = str(tiny.dense_qcow2), str(tiny.dense_raw)
    measure_in_process(["random", reader, image, raw, "50"])
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 1
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(os.path.getsize(raw)))
    with pytest.raises(ValueError, match="reads something else"):
        measure_in_process(["random", reader, image, str(other), "50"])


def test_sequential_reads_and_info_in_process(
    tiny: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    image, raw = str(tiny.dense_qcow2), str(tiny.dense_raw)
    measure_in_process(["sequential", "imgtool", image, raw])
    measure_in_process(["sequential", "preadv", raw, raw])
    measure_in_process(["info", image, "2"])
    assert all(0 < float(line) < 1 for line in capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="reads something else"):
        measure_in_process(["sequential", "preadv", image, raw])


def test_every_series_has_images_and_a_start(tiny: Inputs) -> None:
    series = all_series(tiny)
    assert {each.grows for each in series} == {
        "data",
        "allocated clusters",
        "virtual size",
        "extents",
        "workers",
    }
    for each in series:
        sizes = [size for size, _, _ in each.points]
        assert sizes == sorted(set(sizes))
        assert len({contender.name for _, _, contender in each.points}) == len(sizes)


def test_goals_of_the_table_have_text_and_a_limit() -> None:
    goals: list[Goal] = [goal for row in ROWS for goal in row.goals]
    assert len({(goal.text, goal.baseline) for goal in goals}) == len(goals)
    assert len({row.name for row in ROWS}) == len(ROWS)
