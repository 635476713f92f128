"""Judges of what was timed, so that a fast wrong answer cannot pass: they raise RuntimeError."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.inputs import qemu_img
from benchmarks.model import Command


def same_disk(source: Path, output: Path) -> Callable[[], None]:
    """Return a judge that both images hold the same disk, and that the output is sound."""

    def judge() -> None:
        first, second = (path.suffix.removeprefix(".") for path in (source, output))
        qemu_img("compare", "-f", first, "-F", second, source, output)
        if second == "qcow2":
            qemu_img("check", "-f", "qcow2", output)

    return judge


def sound_image(output: Path, size: int) -> Callable[[], None]:
    """Return a judge that the output is a sound qcow2 image of ``size`` bytes."""

    def judge() -> None:
        described = json.loads(qemu_img("info", "-f", "qcow2", "--output", "json", output))
        if described["virtual-size"] != size:
            raise RuntimeError(f"{output} is a disk of {described['virtual-size']} bytes")
        qemu_img("check", "-f", "qcow2", output)

    return judge


def same_answer(command: Command, reference: Command) -> Callable[[], None]:
    """Return a judge that both commands print the same JSON, names of images apart.

    What only one of them tells is not compared.
    """

    def judge() -> None:
        answers = [
            json.loads(subprocess.run(each, capture_output=True, check=True).stdout)
            for each in (command, reference)
        ]
        if not _agree(*answers):
            raise RuntimeError(f"{' '.join(command)} prints {str(answers[0])[:200]}")

    return judge


def _agree(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return one == other
