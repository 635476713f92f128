"""Runs qemu-img and imgtool with the same arguments, each in a directory of its own or in one."""

from __future__ import annotations

import difflib
import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from imgtool.cli.main import run
from tests.kit.tools import require_tool


class Outcome(NamedTuple):
    """What a program leaves that others can rely on."""

    status: int
    stdout: str
    files: frozenset[str]


class Twins:
    """Two directories with the same files, ``qemu`` and ``imgtool`` under ``base``.

    ``capture`` and ``chdir`` come from pytest's fixtures: imgtool runs in this process.
    """

    def __init__(self, base: Path, capture, chdir) -> None:  # type: ignore[no-untyped-def]
        self._img = require_tool("qemu-img")
        self._io = require_tool("qemu-io")
        self._capture, self._chdir = capture, chdir
        self.base = base
        self.qemu, self.imgtool = base / "qemu", base / "imgtool"
        #: Nothing is changed, so one directory, qemu's, does for both.
        self.shared = False
        #: What imgtool is told in addition.
        self.extra: tuple[str, ...] = ()
        self.qemu.mkdir()

    def img(self, *arguments: str) -> None:
        """Prepare qemu's directory with qemu-img."""
        subprocess.run([self._img, *arguments], cwd=self.qemu, check=True, capture_output=True)

    def io(self, *arguments: str) -> None:
        """Prepare qemu's directory with qemu-io."""
        subprocess.run([self._io, *arguments], cwd=self.qemu, check=True, capture_output=True)

    def run(self, *arguments: str) -> tuple[Outcome, Outcome]:
        """Run both, imgtool on a copy of what qemu-img found; qemu-img's outcome comes first."""
        theirs, ours, told = self._both([self._img, *arguments], (*arguments, *self.extra))
        assert ours.status == 0 or told.startswith("imgtool"), told
        return theirs, ours

    def run_io(self, *arguments: str, stdin: str = "") -> tuple[Outcome, Outcome]:
        """Run qemu-io and ``imgtool io`` in the same way."""
        theirs, ours, _ = self._both([self._io, *arguments], ("io", *arguments), stdin)
        return theirs, ours

    def _both(
        self, real: Sequence[str], arguments: Sequence[str], stdin: str = ""
    ) -> tuple[Outcome, Outcome, str]:
        if self.shared:
            self.imgtool = self.qemu
        else:
            shutil.rmtree(self.imgtool, ignore_errors=True)
            shutil.copytree(self.qemu, self.imgtool)
        done = subprocess.run(
            real, cwd=self.qemu, capture_output=True, check=False, input=stdin.encode()
        )
        theirs = Outcome(done.returncode, done.stdout.decode(), self._files(self.qemu))
        self._chdir(self.imgtool)
        self._capture.readouterr()
        try:
            with patch("sys.stdin", io.StringIO(stdin)):
                status = run(arguments)
        finally:
            self._chdir(self.base)
        printed = self._capture.readouterr()
        ours = Outcome(status, printed.out, self._files(self.imgtool))
        return theirs, ours, printed.err

    def alike(self, *arguments: str) -> int:
        """Run both, require equal output, status and files, and return the status."""
        theirs, ours = self.run(*arguments)
        shown = "\n".join(difflib.unified_diff(theirs.stdout.split("\n"), ours.stdout.split("\n")))
        assert ours.stdout == theirs.stdout, f"{arguments}:\n{shown}"
        assert ours == theirs, arguments
        return ours.status

    @staticmethod
    def _files(directory: Path) -> frozenset[str]:
        return frozenset(str(path.relative_to(directory)) for path in directory.rglob("*"))
