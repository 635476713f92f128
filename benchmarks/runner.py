"""Runs contenders in turn, and measures each run from outside: its times and its memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import touch_free
from benchmarks.model import Command, Contender, Measured, nothing

#: What ru_maxrss counts in: bytes on macOS, KiB elsewhere.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


#: Installed programs have their bytecode; an interpreter that may not keep it compiles every time.
_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


@dataclass(frozen=True)
class Run:
    """One command that has ended: its seconds, the bytes of memory at its peak, its output."""

    seconds: float
    cpu: float
    peak: int
    printed: str


def run(command: Command) -> Run:
    """Run ``command`` and measure it; RuntimeError if it fails.

    ``peak`` is never less than this process's own memory, which a child has until its program is
    loaded: nothing large may be imported here.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        ]
        start = time.perf_counter()
        child = os.posix_spawn(command[0], list(command), _ENVIRONMENT, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        errors.seek(0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            message = errors.read().decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)[:500]} ended with {code}: {message}")
        return Run(
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * _MAXRSS_UNIT,
            output.read().decode(errors="replace"),
        )


def compete(
    contenders: Sequence[Contender],
    runs: int,
    warm_ups: int,
    settle: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Measured]:
    """Let all contenders run in turn, ``warm_ups`` and then ``runs`` times; only these count.

    With ``settle``, a run waits until what was written before it has reached the disk, and until
    memory for what it writes itself is there: it would pay for that. A contender whose package is
    not installed is left out.
    """
    present = [each for each in contenders if _installed(each.requires)]
    for each in contenders:
        if each not in present:
            say(f"  {each.name}: {each.requires} is not installed, left out")
    results = {each.name: Measured(command=each.clock is None) for each in present}
    for number in range(warm_ups + runs):
        for contender in present:
            result = results[contender.name]
            remove(contender.outputs)
            contender.prepare()
            if settle and (contender.outputs or contender.prepare is not nothing):
                os.sync()
                for output in contender.outputs[:1]:
                    touch_free(output.parent)
            _once(contender, result, judged=number == 0, counts=number >= warm_ups)
        if number >= warm_ups:
            times = (f"{name} {result.seconds[-1]:.4g} s" for name, result in results.items())
            say("  " + ", ".join(times))
    return results


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def _once(contender: Contender, result: Measured, *, judged: bool, counts: bool) -> None:
    """Run a contender once. What it wrote is gone afterwards, before it is written back at best."""
    try:
        done = [run(command) for command in contender.commands]
        if judged:
            contender.verify()
            if contender.outputs:
                result.size = occupied(contender.outputs[0])
    finally:
        remove(contender.outputs)
    if counts:
        clock = contender.clock
        times = (each.seconds if clock is None else clock(each.printed) for each in done)
        result.seconds.append(sum(times) / contender.per)
        result.cpu.append(sum(each.cpu for each in done) / contender.per)
        result.peak = max(result.peak, *(each.peak for each in done))


def occupied(path: Path) -> int | None:
    """Return how many bytes of a disk a file takes, its holes left out; None for a folder."""
    status = path.stat()
    return None if path.is_dir() else min(status.st_size, status.st_blocks * 512)


def remove(paths: Sequence[Path]) -> None:
    """Remove files and folders, if they are there."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
