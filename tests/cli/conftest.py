"""Runs the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgtool.cli.main import run


@dataclass(frozen=True)
class Done:
    """What a run left: its exit status, and what it printed."""

    status: int
    stdout: str
    stderr: str


Imgtool = Callable[..., Done]


@pytest.fixture
def imgtool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Imgtool:
    """A function that runs ``imgtool`` with the arguments given, in the directory ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        status = run(arguments)
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    return call
