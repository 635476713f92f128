"""What only describes an image opens that one file, whatever files the image names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import imgtool
from imgtool.cli.main import run
from tests.kit.qcow2 import DATA_FILE, ImageBuilder
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.tools import require_tool

ROOT = Path(__file__).parent.parent
SIZE = 1 << 20

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.fsdecode(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_hook)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths of all files that this process opens."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that name files, all of which are there and may be read."""
    folder = tmp_path_factory.mktemp("one-file")
    (folder / "base.raw").write_bytes(bytes(SIZE))
    (folder / "data.raw").write_bytes(bytes(SIZE))
    os.mkfifo(folder / "fifo")
    for name, backing, form in (
        ("overlay", b"base.raw", b"raw"),
        ("top", b"overlay.qcow2", b"qcow2"),
        ("unrecorded", b"base.raw", None),
        ("over-fifo", b"fifo", b"raw"),
        ("over-host", b"/etc/passwd", b"raw"),
        ("over-json", b'json:{"driver":"file","filename":"base.raw"}', b"raw"),
    ):
        builder = ImageBuilder(SIZE, backing=backing, backing_format=form)
        builder.data(0)
        (folder / f"{name}.qcow2").write_bytes(builder.build())
    for name, data in (("external", b"data.raw"), ("external-host", b"/etc/passwd")):
        builder = ImageBuilder(
            SIZE, external=True, extensions=[(DATA_FILE, data)], backing=b"base.raw",
            backing_format=b"raw",
        )  # fmt: skip
        builder.data(0)
        (folder / f"{name}.qcow2").write_bytes(builder.build())
    (folder / "snapshots.qcow2").write_bytes(GALLERY["v3"]().build())
    imgtool.create(folder / "bitmaps.qcow2", SIZE)
    imgtool.bitmap(folder / "bitmaps.qcow2", "b", "add")
    imgtool.create(folder / "locked.luks", SIZE, format="luks", password="x", iter_time=10)
    return folder


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".qcow2", ".luks"))


#: What must not open anything but the image that it is given.
QUESTIONS: dict[str, Callable[[Path], object]] = {
    "info": lambda path: run(["info", str(path)]),
    "info-json": lambda path: run(["info", "--output=json", str(path)]),
    "info-shared": lambda path: run(["info", "-U", str(path)]),
    "info-trusted": lambda path: run(["info", "--trust", str(path)]),
    "check": lambda path: run(["check", str(path)]),
    "check-dry-run": lambda path: run(["check", "-r", "all", "--dry-run", str(path)]),
    "snapshot": lambda path: run(["snapshot", "-l", str(path)]),
    "bitmap": lambda path: run(["bitmap", "--list", str(path), "b"]),
    "library-info": imgtool.info,
    "library-shared": lambda path: imgtool.info(path, share=True),
    "library-snapshots": imgtool.snapshots,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_one_file_is_opened(
    folder: Path, question: str, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # What is imported for the first time is opened as well.
    QUESTIONS[question](folder / "snapshots.qcow2")
    for path in images(folder):
        opened.clear()
        QUESTIONS[question](path)
        assert opened.count(str(path)) == 1
        own = (sys.prefix, sys.base_prefix, str(ROOT), "/proc/self", "/etc/localtime", "/usr")
        # A dry run keeps what it would write in a file without a name.
        others = [name for name in opened if name != tempfile.gettempdir()]
        assert [name for name in others if not name.startswith(own)] == [str(path)]
    capsys.readouterr()


def test_the_whole_chain_is_opened_if_it_is_asked_for(folder: Path, opened: list[str]) -> None:
    """So that the test above would notice."""
    assert len(imgtool.info(folder / "top.qcow2", backing_chain=True).backing_chain) == 2
    assert {Path(name).name for name in opened} >= {"top.qcow2", "overlay.qcow2", "base.raw"}


@pytest.mark.parametrize("options", [[], ["-U"]])
def test_under_strace(folder: Path, options: list[str], tmp_path: Path) -> None:
    """No call opens, connects to or runs anything else, in whatever way a file can be opened."""
    strace = require_tool("strace")
    log = tmp_path / "log"
    paths = [str(path) for path in images(folder)]
    subprocess.run(
        [
            *(strace, "-f", "-o", log, "-e", "trace=open,openat,openat2,connect,execve,/.*at2$"),
            *(sys.executable, "-m", "imgtool", "info", *options, *paths),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    calls = log.read_text().splitlines()
    named = [
        match[1]
        for call in calls
        if " = -1 " not in call and (match := re.search(r'open\w*\((?:\w+, )?"([^"]*)"', call))
    ]
    assert [name for name in named if name.startswith(str(folder))] == paths
    assert not [name for name in named if not name.startswith("/") and name != "."]
    assert not [
        name for name in named if name.startswith(("/etc/passwd", "/dev/", "/proc/self/fd"))
    ]
    assert not [call for call in calls if "connect(" in call]
    assert sum("execve(" in call for call in calls) == 1
