"""Files, links and folders that change under the opener's feet: nothing outside is ever opened."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgtool.errors import ImageError
from imgtool.storage import directory
from imgtool.storage.file import FileStorage
from tests.kit.disks import open_disk
from tests.kit.effort import effort
from tests.kit.qcow2 import DATA_FILE, ImageBuilder

SIZE = 1 << 16

#: Opens of one test, successful or not, while somebody else is busy; and until both have been seen.
_OPENS = effort(300)
_MOST_OPENS = 100 * _OPENS


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that looks like one of the images, with other things in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "leaf.raw").write_bytes(b"S" * SIZE)
    overlay(folder / "middle.qcow2", "leaf.raw", "raw")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "leaf.raw").write_bytes(b"i" * SIZE)
    overlay(folder / "sub" / "middle.qcow2", "leaf.raw", "raw")
    return folder


def overlay(path: Path, name: str, format: str) -> Path:
    path.write_bytes(
        ImageBuilder(SIZE, backing=name.encode(), backing_format=format.encode()).build()
    )
    return path


def with_data_file(path: Path, name: str) -> Path:
    builder = ImageBuilder(SIZE, external=True, extensions=[(DATA_FILE, name.encode())])
    builder.data(0)
    path.write_bytes(builder.build())
    return path


@contextlib.contextmanager
def meanwhile(steps: list[Callable[[], object]]) -> Iterator[None]:
    """Go through ``steps`` over and over in a thread of its own."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            for step in steps:
                with contextlib.suppress(FileNotFoundError):
                    step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def swap(place: Path, other: Path, aside: Path) -> list[Callable[[], object]]:
    """Put ``other`` where ``place`` is, and everything back again."""
    return [
        lambda: os.rename(place, aside),
        lambda: os.rename(other, place),
        lambda: os.rename(place, other),
        lambda: os.rename(aside, place),
    ]


def replaced_folder(images: Path, outside: Path) -> list[Callable[[], object]]:
    (images / "other").symlink_to(outside)
    return swap(images / "sub", images / "other", images / "aside")


def replaced_file(images: Path, outside: Path) -> list[Callable[[], object]]:
    steps = []
    for name in ("leaf.raw", "middle.qcow2"):
        (images / "sub" / f"other-{name}").symlink_to(outside / name)
        steps += swap(
            images / "sub" / name, images / "sub" / f"other-{name}", images / "sub" / f"old-{name}"
        )
    return steps


def replaced_link(images: Path, outside: Path) -> list[Callable[[], object]]:
    """The folder is a link from the beginning, and changes where it leads in one step."""
    (images / "sub").rename(images / "real")
    (images / "sub").symlink_to("real")

    def point(target: str | Path) -> None:
        (images / "new").symlink_to(target)
        os.replace(images / "new", images / "sub")

    return [lambda: point(outside), lambda: point("real")]


def moved_away(images: Path, outside: Path) -> list[Callable[[], object]]:
    """The folder itself leaves, so that what is above it is not what was above it before."""
    return [
        lambda: os.rename(images / "sub", outside / "sub"),
        lambda: os.rename(outside / "sub", images / "sub"),
    ]


CHANGES = [replaced_folder, replaced_file, replaced_link, moved_away]


@pytest.mark.skipif(not directory.SUPPORTED, reason="this host opens nothing relative to folders")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["sub/middle.qcow2", "sub/leaf.raw", "sub/../sub/leaf.raw"])
def test_nothing_outside_is_opened(
    images: Path,
    outside: Path,
    change: Callable[[Path, Path], list[Callable[[], object]]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file is known by its inode, whatever it is called by the time that it is opened."""
    forbidden = {(status.st_dev, status.st_ino) for status in map(os.stat, outside.iterdir())}
    opened: list[object] = []
    remember = FileStorage.__init__

    def initialise(self: FileStorage, *arguments: object, **named: object) -> None:
        remember(self, *arguments, **named)  # type: ignore[arg-type]
        opened.append(self.identity)

    monkeypatch.setattr(FileStorage, "__init__", initialise)
    if name.endswith("qcow2"):
        tops = [overlay(images / "top.qcow2", name, "qcow2")]
    else:
        tops = [overlay(images / "top.qcow2", name, "raw")]
        tops.append(with_data_file(images / "data.qcow2", name))
    steps = change(images, outside)
    whole = failed = 0
    with meanwhile(steps):
        for number in range(_MOST_OPENS):
            # On a busy machine it may take long until the other thread has its turn.
            if number >= _OPENS and whole and failed:
                break
            try:
                with open_disk(tops[number % len(tops)]) as device:
                    assert device.read_at(0, 1) == b"i"
                whole += 1
            except ImageError:
                failed += 1
    assert not forbidden & set(opened)
    # Otherwise nothing has been tried.
    assert whole
    assert failed


def test_names_start_from_the_folder_in_which_a_file_was_found(images: Path, outside: Path) -> None:
    """Though its path leads elsewhere by the time that the file is read."""
    top = overlay(images / "top.qcow2", "sub/middle.qcow2", "qcow2")
    opening = directory.Entry.open

    def swap_then_open(self: directory.Entry, flags: int) -> int:
        number = opening(self, flags)
        if (images / "sub").is_dir() and not (images / "sub").is_symlink():
            with contextlib.suppress(OSError):
                if os.fstat(number).st_ino == (images / "sub" / "middle.qcow2").stat().st_ino:
                    (images / "sub").rename(images / "old")
                    (images / "sub").symlink_to(outside)
        return number

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(directory.Entry, "open", swap_then_open)
        with open_disk(top) as device:
            assert device.read_at(0, 1) == b"i"
    assert (images / "sub").is_symlink()


def test_without_folders_that_are_held_open(
    images: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a host has no such calls, a path is judged before it is opened and again after."""
    monkeypatch.setattr(directory, "SUPPORTED", False)
    top = overlay(images / "top.qcow2", "sub/leaf.raw", "raw")
    with open_disk(top) as device:
        assert device.read_at(0, 1) == b"i"
    for name in ("../outside/leaf.raw", str(outside / "leaf.raw")):
        with pytest.raises(ImageError, match="lies outside"):
            open_disk(overlay(images / "top.qcow2", name, "raw"))
    (images / "link").symlink_to(outside)
    with pytest.raises(ImageError, match="lies outside"):
        open_disk(overlay(images / "top.qcow2", "link/leaf.raw", "raw"))
    with pytest.raises(ImageError, match="not a regular file"):
        open_disk(overlay(images / "top.qcow2", "sub", "raw"))
    judge = directory.CheckedPath._judge

    def judge_then_swap(self: directory.CheckedPath) -> str:
        real = judge(self)
        if not (images / "sub").is_symlink():
            (images / "sub").rename(images / "old")
            (images / "sub").symlink_to(outside)
        return real

    monkeypatch.setattr(directory.CheckedPath, "_judge", judge_then_swap)
    with pytest.raises(ImageError, match="lies outside"):
        open_disk(overlay(images / "top.qcow2", "sub/leaf.raw", "raw"))
