"""``convert --bitmaps`` next to qemu-img's: which bitmaps are copied, and what they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import imgtool
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit import referee

COPIED = [
    ("-O", "qcow2", "--bitmaps", "disk.q", "new.q"),
    ("-c", "-O", "qcow2", "--bitmaps", "disk.q", "new.q"),
    ("-O", "qcow2", "-o", "cluster_size=4k", "--bitmaps", "disk.q", "new.q"),
    ("-O", "qcow2", "--bitmaps", "none.q", "new.q"),
    ("-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", "disk.q", "new.q"),
    ("-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", "broken.q", "new.q"),
    ("-n", "-O", "qcow2", "--bitmaps", "disk.q", "none.q"),
]

REFUSED = [
    ("-O", "raw", "--bitmaps", "disk.q", "new.raw"),
    ("-O", "qcow2", "-o", "compat=0.10", "--bitmaps", "disk.q", "new.q"),
    ("-O", "qcow2", "--skip-broken-bitmaps", "disk.q", "new.q"),
    ("-O", "qcow2", "--bitmaps", "disk.q", "none.q", "new.q"),
    ("-f", "raw", "-O", "qcow2", "--bitmaps", "disk.raw", "new.q"),
    ("-O", "qcow2", "--bitmaps", "broken.q", "new.q"),
    ("-n", "-O", "qcow2", "--bitmaps", "disk.q", "same.q"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = Workshop(tmp_path_factory.mktemp("bitmaps") / "images")
    for name in ("disk.q", "none.q", "same.q"):
        shop.create(Path(name), "qcow2", "2M", "")
    shop.create(Path("disk.raw"), "raw", "2M", "")
    shop.img("bitmap", "--add", "disk.q", "following")
    shop.img("bitmap", "--add", "-g", "4k", "--disable", "disk.q", "still")
    shop.img("bitmap", "--add", "-g", "512", "disk.q", "fine")
    shop.img("bitmap", "--add", "same.q", "fine")
    shop.io(Path("disk.q"), "qcow2", "write -P 1 100k 300k", "write -P 2 1900k 100k")
    shutil.copy(shop.directory / "disk.q", shop.directory / "broken.q")
    shop.abort(Path("broken.q"), "write 0 64k")
    return shop.directory


def _bitmaps(path: Path) -> tuple[object, list[list[tuple[int, int]]]]:
    found = json.loads(referee.must("qemu-img", "info", "--output=json", path))
    bitmaps = found["format-specific"]["data"].get("bitmaps", [])
    return bitmaps, [list(imgtool.dirty_ranges(path, one["name"])) for one in bitmaps]


@pytest.mark.parametrize("arguments", COPIED, ids=" ".join)
def test_copied(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = prepared.run("convert", *arguments)
    assert ours == theirs
    assert ours.status == 0
    name = arguments[-1]
    assert _bitmaps(prepared.imgtool / name) == _bitmaps(prepared.qemu / name)
    assert referee.check(prepared.imgtool / name)["exit"] == 0


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refused(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = prepared.run("convert", *arguments)
    assert (theirs.status, ours.status) == (1, 1)
    assert ours.stdout == theirs.stdout
    # Where qemu-img leaves the new image behind, imgtool does not make it.
    assert not (prepared.imgtool / "new.q").exists()
    assert not (prepared.imgtool / "new.raw").exists()
