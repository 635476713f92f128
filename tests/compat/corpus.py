"""A corpus of images made by qemu-img and qemu-io, whole and damaged, for comparing commands.

It is made once for all processes of a test run. Tests only read it.
"""

from __future__ import annotations

import fcntl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from imgtool.cli.main import run
from tests.compat import damage, recipes
from tests.compat.recipes import Recipe
from tests.compat.workshop import Workshop
from tests.kit.tools import require_tool

WHOLE = {recipe.name: recipe for recipe in recipes.recipes()}
DAMAGED = {recipe.name: recipe for recipe in damage.recipes()}
RECIPES = WHOLE | DAMAGED


class Outcome(NamedTuple):
    """What a program printed, and the status it ended with."""

    status: int
    stdout: str
    stderr: str

    @property
    def findings(self) -> list[str]:
        """The lines on stderr that are not the program's own complaints."""
        lines = self.stderr.replace(_HINT, "").split("\n")
        return [line for line in lines if line and not line.startswith(("qemu-img: ", "imgtool: "))]


#: qemu-img puts this in front of the first finding, on one line with it.
_HINT = "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix."


class Corpus:
    """The images under ``directory``, each in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        """The image that the recipe called ``name`` made."""
        return self._directory / name / f"image.{RECIPES[name].format}"


class Both:
    """Runs imgtool, in this process, and qemu-img with the same arguments."""

    def __init__(
        self,
        corpus: Corpus,
        capture: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self._corpus, self._capture, self._monkeypatch = corpus, capture, monkeypatch
        self._img = require_tool("qemu-img")

    def path(self, name: str) -> Path:
        """The image called ``name`` of the corpus."""
        return self._corpus.path(name)

    def run(self, name: str, *arguments: str) -> tuple[Outcome, Outcome]:
        """What qemu-img and imgtool say of an image of the corpus, which ``{}`` stands for."""
        path = self.path(name)
        return self.run_in(path.parent, *(part.replace("{}", path.name) for part in arguments))

    def run_in(self, directory: Path, *arguments: str) -> tuple[Outcome, Outcome]:
        """What qemu-img and imgtool say in ``directory``."""
        self._monkeypatch.chdir(directory)
        self._capture.readouterr()
        status = run(arguments)
        printed = self._capture.readouterr()
        # imgtool goes first: what it reads into the host's cache can show in a map of holes, and
        # qemu-img reads no more.
        done = subprocess.run(
            [self._img, *arguments], cwd=directory, capture_output=True, text=True, check=False
        )
        theirs = Outcome(done.returncode, done.stdout, done.stderr)
        return theirs, Outcome(status, printed.out, printed.err)


def build(directory: Path) -> Corpus:
    """Make the corpus, or wait until another process of this test run has made it."""
    directory.mkdir(exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = directory / "done"
        if not done.exists():
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda recipe: _make(directory, recipe), RECIPES.values()))
            done.touch()
    return Corpus(directory)


def _make(directory: Path, recipe: Recipe) -> None:
    recipe.build(Workshop(directory / recipe.name))
