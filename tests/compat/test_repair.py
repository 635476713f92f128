"""``check -r`` next to qemu-img's repair of a copy: what is left, and what can be read then."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

import pytest

from imgtool.cli.main import run
from tests.compat.corpus import DAMAGED, Corpus
from tests.kit import referee

#: Clusters that nothing can read and no check, qemu-img's neither, objects to stay as they are.
UNREADABLE = {
    "damaged-entry-reserved-v2",
    "damaged-compressed-to-header",
    "damaged-data-file-past-end",
}

#: The guest sees an L2 table, in which the two may set flags differently.
TABLE_SEEN = {"damaged-entry-to-l2"}

#: Status 1, because the refcounts are of no use, or a table is not inside the file.
NOT_DONE = {"damaged-table-outside", "damaged-snapshot-count"}

#: qemu-img stores bitmaps anew when it closes an image, and empty ones where they are damaged.
BITMAPS_LOST = {
    "damaged-bitmap-data-past-end",
    "damaged-bitmap-table-past-end",
    "damaged-bitmap-data-shared",
}


class Copies:
    """A damaged image twice: for qemu-img under ``qemu``, and for imgtool under ``imgtool``."""

    def __init__(self, source: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.qemu, self.imgtool = base / "qemu", base / "imgtool"
        self.name = source.name
        shutil.copytree(source, self.qemu)
        shutil.copytree(source, self.imgtool)
        self._monkeypatch = monkeypatch

    def repair(self, what: str) -> tuple[int, int]:
        """Let both repair; return qemu-img's exit status and imgtool's."""
        theirs = referee.run("qemu-img", "check", "-r", what, "image.qcow2", cwd=self.qemu)
        self._monkeypatch.chdir(self.imgtool)
        return theirs.returncode, run(("check", "-r", what, "image.qcow2"))


@pytest.fixture
def copies(
    corpus: Corpus, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Copies:
    return Copies(corpus.path(request.param).parent, tmp_path, monkeypatch)


def read(directory: Path, name: str) -> Path | None:
    """The disk as a raw file, or None if QEMU cannot read all of it."""
    target = directory.parent / name
    arguments = ("convert", "-f", "qcow2", "-O", "raw", "image.qcow2", target)
    done = referee.run("qemu-img", *arguments, cwd=directory)
    return None if done.returncode else target


def left(directory: Path) -> tuple[int, int, int]:
    """The status of qemu-img check, how many corruptions it finds, and how many leaks."""
    done = referee.run("qemu-img", "check", "--output=json", "image.qcow2", cwd=directory)
    found = json.loads(done.stdout) if done.stdout else {}
    return done.returncode, found.get("corruptions", 0), found.get("leaks", 0)


@pytest.mark.parametrize("copies", DAMAGED, indirect=True)
def test_all(copies: Copies) -> None:
    """Nothing is wrong then, and QEMU reads what it read before, and what its own repair shows."""
    before = read(copies.qemu, "before.raw")
    _, status = copies.repair("all")
    assert status == 0
    assert left(copies.imgtool) == (0, 0, 0)
    after = read(copies.imgtool, "after.raw")
    if copies.name in UNREADABLE:
        assert before is after is None
    else:
        assert after is not None
        theirs = read(copies.qemu, "theirs.raw") if left(copies.qemu) == (0, 0, 0) else None
        for expected in (before, theirs) if copies.name not in TABLE_SEEN else ():
            assert expected is None or filecmp.cmp(after, expected, shallow=False)
    image = copies.imgtool / "image.qcow2"
    once = image.read_bytes()
    assert run(("check", "-q", "-r", "all", "image.qcow2")) == 0
    assert image.read_bytes() == once


@pytest.mark.parametrize("copies", DAMAGED, indirect=True)
def test_leaks(copies: Copies) -> None:
    """The status is qemu-img's, and so is what is left."""
    theirs, ours = copies.repair("leaks")
    if copies.name in NOT_DONE:
        assert (ours, theirs) == (1, 2)
        return
    assert ours == theirs
    if copies.name not in BITMAPS_LOST:
        assert left(copies.imgtool) == left(copies.qemu)
