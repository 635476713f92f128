"""Runs qemu-img and imgtool with the same arguments, each in a directory of its own or in one."""

from __future__ import annotations

import difflib
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

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
        if self.shared:
            self.imgtool = self.qemu
        else:
            shutil.rmtree(self.imgtool, ignore_errors=True)
            shutil.copytree(self.qemu, self.imgtool)
        done = subprocess.run(
            [self._img, *arguments], cwd=self.qemu, capture_output=True, check=False
        )
        theirs = Outcome(done.returncode, done.stdout.decode(), self._files(self.qemu))
        self._chdir(self.imgtool)
        self._capture.readouterr()
        try:
            status = run((*arguments, *self.extra))
        finally:
            self._chdir(self.base)
        printed = self._capture.readouterr()
        assert status == 0 or printed.err.startswith("imgtool"), printed.err
        return theirs, Outcome(status, printed.out, self._files(self.imgtool))

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
