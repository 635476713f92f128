"""``python -m benchmarks``: makes the inputs, runs the rows, writes RESULTS.md and the chart."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chart import draw
from benchmarks.inputs import FULL, QUICK, Inputs
from benchmarks.model import Row
from benchmarks.report import goals_table, render, times_table
from benchmarks.results import Results
from benchmarks.rows import ROWS
from benchmarks.runner import compete

_HERE = Path(__file__).parent

#: What ends a row without ending the others: a tool that fails, is missing, or answers wrongly.
_FAILURES = (RuntimeError, OSError, ValueError, subprocess.SubprocessError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        for row in ROWS:
            print(f"{row.name:18}{'; '.join(goal.text for goal in row.goals)}")
        return 0
    scale = QUICK if options.quick else FULL
    with _folder(options.inputs, options.keep) as folder:
        inputs = Inputs(folder, scale)
        where = options.results or (inputs.folder if options.quick else _HERE)
        results = Results(where / "results.json")
        failed = False
        try:
            if options.what == "scaling":
                _run_scaling(inputs, results, options.runs or 3)
            elif options.what == "table":
                chosen = [row for row in ROWS if not options.only or row.name in options.only]
                failed = not run_rows(chosen, inputs, results, options.runs or scale.runs)
        except KeyboardInterrupt:
            print("interrupted: the rows that had ended are kept", file=sys.stderr)
            return 130
        finally:
            write(results, where)
        print(f"\n{goals_table(results)}\n{times_table(results)}")
        if options.quick:
            print("Small inputs: sizes that the table names are those of the full run.")
    return int(failed)


def run_rows(rows: Sequence[Row], inputs: Inputs, results: Results, runs: int) -> bool:
    """Run each row and record it; return whether none failed."""
    scale = inputs.scale
    passed = True
    for row in rows:
        print(row.name, flush=True)
        try:
            measured = compete(row.contenders(inputs), runs, scale.warm_ups, settle=scale.settle)
        except _FAILURES as error:
            print(f"  failed: {error}", file=sys.stderr)
            results.put_failure(row.name, scale.name, str(error))
            passed = False
        else:
            results.put_row(row.name, scale.name, measured)
    return passed


def write(results: Results, folder: Path) -> None:
    """Write what people read: the report and the chart."""
    (folder / "RESULTS.md").write_text(render(results), encoding="utf-8")
    (folder / "chart.svg").write_text(draw(results), encoding="utf-8")


def _run_scaling(inputs: Inputs, results: Results, runs: int) -> None:
    from benchmarks.scaling import measure_all

    results.put_scaling(measure_all(inputs, runs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("table", "scaling", "report"),
        default="table",
        help="run the table of goals, or see how costs grow, or write the report again",
    )
    parser.add_argument("--quick", action="store_true", help="small inputs and few runs")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        choices=[row.name for row in ROWS],
        help="run these rows; what is recorded of the others stays",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="how many runs count")
    parser.add_argument(
        "--inputs", type=Path, metavar="DIR", help="make the inputs here, or use those that are"
    )
    parser.add_argument("--keep", action="store_true", help="keep the inputs, and say where")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="where results.json, RESULTS.md and chart.svg are [default: benchmarks/; with --quick "
        "they go with the inputs]",
    )
    parser.add_argument("--list", action="store_true", help="list the rows")
    return parser


@contextmanager
def _folder(chosen: Path | None, keep: bool) -> Iterator[Path]:
    """Give the folder for the inputs: one that was chosen, or a new one that goes afterwards."""
    if chosen is not None:
        yield chosen.resolve()
        return
    # Not /tmp, which may be in memory: that is no disk to measure, and too small.
    lasting = Path("/var/tmp")
    parent = str(lasting) if lasting.is_dir() else None
    if keep:
        folder = Path(tempfile.mkdtemp(prefix="imgtool-benchmarks-", dir=parent))
        print(f"inputs are kept in {folder}")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="imgtool-benchmarks-", dir=parent) as name:
        yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
