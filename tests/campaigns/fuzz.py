"""Fuzzes every format for as long as one likes: ``python -m tests.campaigns.fuzz --help``.

What is found is written to a folder, as recipes that go into ``tests/fuzz/corpus/`` with the fix.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.subjects import SUBJECTS
from tests.kit.fuzz.arena import Tally, Target, run, targets


def main() -> int:
    """Run a campaign; the exit status is 1 if anything was found."""
    known = targets(SUBJECTS.values())
    coverage = (*known, *(f"{name}-schemas" for name in SUBJECTS), "words")
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long in all (60)")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes (1)")
    parser.add_argument("--engine", choices=("structure", "atheris"), default="structure")
    parser.add_argument("--target", action="append", choices=coverage, help="by default all")
    parser.add_argument("--seed", help="what decides all chance (structure)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="the folder")
    arguments = parser.parse_args()
    campaign = arguments.seed or secrets.token_hex(4)
    print(f"engine {arguments.engine}, seed {campaign}", flush=True)
    chosen = arguments.target or (coverage if arguments.engine == "atheris" else tuple(known))
    share = arguments.seconds / len(chosen)
    found = 0
    for name in chosen:
        if arguments.engine == "atheris":
            found += _atheris(name, share, arguments.findings)
        else:
            found += _structure(known[name], campaign, share, arguments)
    return 1 if found else 0


def _structure(target: Target, campaign: str, seconds: float, arguments: argparse.Namespace) -> int:
    told: set[str] = set()

    def keep(tally: Tally) -> None:
        for finding in tally.findings:
            if finding.signature not in told:
                told.add(finding.signature)
                arguments.findings.mkdir(exist_ok=True)
                path = arguments.findings / finding.name
                path.with_suffix(".json").write_text(finding.recipe.to_json())
                path.with_suffix(".txt").write_text(
                    f"seed {campaign}, execution {finding.number}\n{finding.signature}\n\n"
                    f"{finding.trace}"
                )
                print(f"{path}: {finding.signature}", flush=True)

    tally = run(target, campaign, seconds=seconds, jobs=arguments.jobs, tell=keep)
    print(
        f"{target.name}: {tally.executions} executions in {tally.seconds:.0f} s "
        f"({tally.refused_at_once} not opened, {tally.whole} nothing wrong), the slowest "
        f"{tally.slowest:.2f} s (number {tally.slowest_number}); {len(tally.findings)} findings",
        flush=True,
    )
    return len(tally.findings)


def _atheris(target: str, seconds: float, findings: Path) -> int:
    """libFuzzer wants a process for itself; what it says goes to a file beside the findings."""
    findings.mkdir(exist_ok=True)
    before = set(findings.glob(f"{target}-*.txt"))
    start = time.monotonic()
    command = [sys.executable, "-m", "tests.campaigns.fuzz_atheris", target, str(findings)]
    with (
        (findings / f"{target}.log").open("w") as log,
        # libFuzzer ends the process with its corpus still there.
        tempfile.TemporaryDirectory(prefix="imgtool-fuzz-") as scratch,
    ):
        status = subprocess.run(
            [*command, f"-max_total_time={max(1, int(seconds))}"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": scratch},
        ).returncode
    new = sorted(set(findings.glob(f"{target}-*.txt")) - before)
    for path in new:
        print(f"{path}: {path.read_text().splitlines()[0]}")
    if status:
        print(f"{log.name}: ended with {status}")
    figures = findings / f"{target}.figures"
    executions = json.loads(figures.read_text())["executions"] if figures.exists() else 0
    print(
        f"{target}: {executions} executions in {time.monotonic() - start:.0f} s; "
        f"{len(new)} findings",
        flush=True,
    )
    return len(new) + (status != 0)


if __name__ == "__main__":
    sys.exit(main())
