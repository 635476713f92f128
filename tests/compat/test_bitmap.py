"""``bitmap`` next to ``qemu-img bitmap``: status, output, and what the bitmaps hold then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import imgtool
from imgtool.device import StoredBitmap
from imgtool.errors import ImageError
from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit import referee

CHANGED = [
    ("--add", "disk.q", "new"),
    ("--add", "-g", "512", "disk.q", "new"),
    ("--add", "-g", "2G", "disk.q", "new"),
    ("--add", "--granularity=64k", "-f", "qcow2", "disk.q", "new"),
    ("--add", "--disable", "disk.q", "new"),
    ("--add", "--disable", "--enable", "disk.q", "new"),
    ("--add", "disk.q", "n" * 1023),
    ("--add", "--merge", "auto", "--merge", "fine", "disk.q", "new"),
    ("--add", "--merge", "fine", "-g", "1M", "disk.q", "new"),
    ("--add", "--merge", "auto", "--clear", "disk.q", "new"),
    ("--add", "--remove", "disk.q", "new"),
    ("--image-opts", "--add", "driver=qcow2,file.filename=disk.q", "new"),
    ("--remove", "disk.q", "auto"),
    ("--remove", "disk.q", "still"),
    ("--clear", "disk.q", "fine"),
    ("--clear", "--clear", "disk.q", "still"),
    ("--clear", "--remove", "disk.q", "fine"),
    ("--enable", "disk.q", "still"),
    ("--enable", "disk.q", "auto"),
    ("--disable", "disk.q", "auto"),
    ("--disable", "--enable", "disk.q", "auto"),
    ("--merge", "fine", "disk.q", "auto"),
    ("--merge", "auto", "disk.q", "fine"),
    ("--merge", "auto", "disk.q", "auto"),
    ("--merge", "auto", "disk.q", "still"),
    ("--merge", "still", "--disable", "disk.q", "fine"),
    ("-b", "other.q", "--merge", "coarse", "disk.q", "fine"),
    ("-b", "other.q", "-F", "qcow2", "--merge", "tiny", "disk.q", "auto"),
    ("-b", "other.q", "--merge", "tiny", "--merge", "coarse", "disk.q", "still"),
    ("-b", "disk.q", "--merge", "auto", "other.q", "tiny"),
    ("--add", "tiny.q", "new"),
    ("--add", "sub.q", "new"),
    ("--add", "data.q", "new"),
    ("--add", "snap.q", "new"),
    ("--add", "-g", "4k", "overlay.q", "new"),
    ("--add", "broken.q", "new"),
    ("--remove", "broken.q", "auto"),
]

REFUSED = [
    (),
    ("disk.q", "auto"),
    ("--add",),
    ("--add", "disk.q"),
    ("--add", "disk.q", "new", "more"),
    ("--add", "disk.q", ""),
    ("--add", "disk.q", "auto"),
    ("--add", "disk.q", "n" * 1024),
    ("--add", "-g", "256", "disk.q", "new"),
    ("--add", "-g", "1000", "disk.q", "new"),
    ("--add", "-g", "4G", "disk.q", "new"),
    ("--add", "-g", "big", "disk.q", "new"),
    ("-g", "64k", "--clear", "disk.q", "auto"),
    ("--add", "--bogus", "disk.q", "new"),
    ("--add", "nowhere.q", "new"),
    ("--add", "old.q", "new"),
    ("--add", "empty.q", "new"),
    ("--add", "-f", "raw", "disk.raw", "new"),
    ("--add", "-f", "raw", "disk.q", "new"),
    ("--add", "-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=disk.q", "new"),
    ("--remove", "disk.q", "new"),
    ("--clear", "disk.q", "new"),
    ("--enable", "disk.q", "new"),
    ("--disable", "disk.q", "new"),
    ("--merge", "new", "disk.q", "auto"),
    ("--merge", "auto", "disk.q", "new"),
    ("-b", "other.q", "disk.q", "auto"),
    ("-b", "other.q", "--clear", "disk.q", "auto"),
    ("-F", "qcow2", "--merge", "fine", "disk.q", "auto"),
    ("-b", "other.q", "--merge", "fine", "disk.q", "auto"),
    ("-b", "larger.q", "--merge", "tiny", "disk.q", "auto"),
    ("-b", "nowhere.q", "--merge", "tiny", "disk.q", "auto"),
    ("-b", "broken.q", "--merge", "auto", "disk.q", "auto"),
    ("--merge", "fine", "broken.q", "auto"),
    ("--clear", "broken.q", "auto"),
    ("--enable", "broken.q", "auto"),
    ("--disable", "broken.q", "auto"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = Workshop(tmp_path_factory.mktemp("bitmap") / "images")
    for name, size, options in (
        ("disk.q", "8M", ""),
        ("other.q", "8M", ""),
        ("larger.q", "9M", ""),
        ("tiny.q", "8M", "cluster_size=512"),
        ("sub.q", "8M", "extended_l2=on"),
        ("data.q", "8M", "data_file=data.raw"),
        ("snap.q", "8M", ""),
        ("old.q", "8M", "compat=0.10"),
        ("overlay.q", "8M", "backing_file=snap.q,backing_fmt=qcow2"),
        ("empty.q", "0", ""),
    ):
        shop.create(Path(name), "qcow2", size, options)
    shop.create(Path("disk.raw"), "raw", "8M", "")
    shop.img("bitmap", "--add", "disk.q", "auto")
    shop.img("bitmap", "--add", "-g", "512", "disk.q", "fine")
    shop.io(Path("disk.q"), "qcow2", "write -P 1 100k 300k", "write -P 2 1900k 100k")
    shop.img("bitmap", "--add", "-g", "1M", "--disable", "disk.q", "still")
    for name in ("other.q", "larger.q"):
        shop.img("bitmap", "--add", "-g", "512", name, "tiny")
        shop.img("bitmap", "--add", "-g", "2M", name, "coarse")
        shop.io(Path(name), "qcow2", "write -P 3 4M 1k", "write -P 4 7M 1M")
    shop.img("snapshot", "-c", "one", "snap.q")
    shutil.copy(shop.directory / "disk.q", shop.directory / "broken.q")
    shop.abort(Path("broken.q"), "write 0 64k")
    return shop.directory


def _bitmaps(path: Path) -> list[tuple[object, list[tuple[int, int]] | None]]:
    """What QEMU lists, and the dirty ranges of the bitmaps that can be read."""
    found = json.loads(
        referee.must("qemu-img", "info", "--output=json", path.name, cwd=path.parent)
    )
    listed = found["format-specific"]["data"].get("bitmaps", [])
    return [(one, _ranges(path, one["name"])) for one in listed]


def _ranges(path: Path, name: str) -> list[tuple[int, int]] | None:
    try:
        return list(imgtool.dirty_ranges(path, name))
    except ImageError:
        return None


@pytest.mark.parametrize("arguments", CHANGED, ids=lambda arguments: " ".join(arguments)[:60])
def test_changed(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("bitmap", *arguments) == 0
    for path in images.glob("*.q"):
        theirs, ours = prepared.qemu / path.name, prepared.imgtool / path.name
        if ours.read_bytes() != path.read_bytes():
            assert _bitmaps(ours) == _bitmaps(theirs)
            if path.name != "data.q":
                same_disks(prepared, path.name)


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(arguments)[:60])
def test_refused(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("bitmap", *arguments) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes()


def test_an_inconsistent_bitmap_can_only_be_removed(prepared: Twins) -> None:
    path = prepared.qemu / "broken.q"
    assert [ranges for _, ranges in _bitmaps(path)] == [None, None, None]


@pytest.mark.parametrize("change", ["--add", "--remove", "--disable", "--clear"])
def test_the_backing_file_may_be_missing(tmp_path: Path, change: str) -> None:
    """What the disk shows is not looked at, here as there."""
    names = {"--add": "new"}
    for tool in ("qemu-img", "imgtool"):
        folder = tmp_path / tool
        folder.mkdir()
        referee.must("qemu-img", "create", "-q", "-f", "raw", "base", "1M", cwd=folder)
        referee.must(
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", cwd=folder
        )
        referee.must("qemu-img", "bitmap", "--add", "top", "old", cwd=folder)
        (folder / "base").unlink()
        name = names.get(change, "old")
        if tool == "qemu-img":
            referee.must(tool, "bitmap", change, "top", name, cwd=folder)
        else:
            imgtool.bitmap(folder / "top", name, change[2:])  # type: ignore[arg-type]
    first, second = (
        [(one.name, one.enabled) for one in open_alone(tmp_path / tool / "top")]
        for tool in ("qemu-img", "imgtool")
    )
    assert first == second
    assert imgtool.info(tmp_path / "imgtool" / "top").backing_filename == "base"


def open_alone(path: Path) -> list[StoredBitmap]:
    alone = imgtool.Reference(str(path), "qcow2", {}, {"backing": None})
    with imgtool.open(alone) as disk:
        return list(disk.stored_bitmaps or ())
