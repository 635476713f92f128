"""``resize`` next to ``qemu-img resize``: output, exit status, sizes and contents."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit import referee

RESIZED = [
    ("disk.q", "3M"),
    ("disk.q", "+1M"),
    ("disk.q", "+0"),
    ("disk.q", "20G"),
    ("--shrink", "disk.q", "-1M"),
    ("--shrink", "disk.q", "--", "-512k"),
    ("disk.q", "--shrink", "1M"),
    ("--shrink", "disk.q", "512"),
    ("-q", "disk.q", "3M"),
    ("--preallocation=metadata", "disk.q", "3M"),
    ("--preallocation", "falloc", "disk.q", "3M"),
    ("--preallocation=full", "disk.q", "3M"),
    ("--preallocation=off", "disk.q", "2M"),
    ("-f", "qcow2", "disk.q", "2560k"),
    ("--image-opts", "driver=qcow2,file.filename=disk.q", "3M"),
    ("overlay.q", "4M"),
    ("--preallocation=metadata", "overlay.q", "4M"),
    ("--shrink", "overlay.q", "64k"),
    ("snap.q", "4M"),
    ("snap.q", "--shrink", "1M"),
    ("sub.q", "4M"),
    ("sub.q", "--shrink", "1M"),
    ("data.q", "4M"),
    ("data.q", "--shrink", "1M"),
    ("-f", "raw", "disk.raw", "3M"),
    ("-f", "raw", "disk.raw", "2500000"),
    ("-f", "raw", "--shrink", "disk.raw", "1000"),
    ("-f", "raw", "--shrink", "disk.raw", "-1M"),
    ("-f", "raw", "--preallocation=falloc", "disk.raw", "3M"),
    ("-f", "raw", "--preallocation=full", "disk.raw", "3M"),
]

REFUSED = [
    (),
    ("disk.q",),
    ("disk.q", "1M", "2M"),
    ("disk.q", "1M"),
    ("disk.q", "-1M"),
    ("disk.q", "--", "-512k"),
    ("disk.q", "0"),
    ("--shrink", "disk.q", "-2M"),
    ("--shrink", "disk.q", "-1G"),
    ("disk.q", "+"),
    ("disk.q", "+-1M"),
    ("disk.q", "big"),
    ("disk.q", "5000000"),
    ("disk.q", "7E"),
    ("disk.q", "64E"),
    ("--preallocation=metadata", "disk.q", "2M"),
    ("--shrink", "--preallocation=full", "disk.q", "1M"),
    ("--preallocation=some", "disk.q", "3M"),
    ("--preallocation=metadata", "-f", "raw", "disk.raw", "3M"),
    ("-f", "raw", "disk.raw", "1M"),
    ("-f", "bogus", "disk.q", "3M"),
    ("-f", "qcow2", "disk.raw", "3M"),
    ("-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=disk.q", "3M"),
    ("old.q", "3M"),
    ("old.q", "2M"),
    ("nowhere.q", "3M"),
    ("--bogus", "disk.q", "3M"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of disks of 2 MiB, of every kind that is resized differently."""
    shop = Workshop(tmp_path_factory.mktemp("resize") / "images")
    writes = ("write -P 1 0 900k", "write -P 2 1900k 148k")
    for name, options in (
        ("disk.q", ""),
        ("sub.q", "extended_l2=on"),
        ("data.q", "data_file=data.raw"),
    ):
        shop.create(Path(name), "qcow2", "2M", options)
        shop.io(Path(name), "qcow2", *writes)
    shop.create(Path("overlay.q"), "qcow2", "1M", "backing_file=disk.q,backing_fmt=qcow2")
    shop.io(Path("overlay.q"), "qcow2", "write -P 3 40k 80k")
    for name, options in (("snap.q", "compat=1.1"), ("old.q", "compat=0.10")):
        shop.img("convert", "-O", "qcow2", "-o", options, "disk.q", name)
        shop.img("snapshot", "-c", "one", name)
    shop.img("convert", "-O", "raw", "disk.q", "disk.raw")
    return shop.directory


@pytest.mark.parametrize("arguments", RESIZED)
def test_resized(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("resize", *arguments) == 0
    (name,) = {name for name in os.listdir(prepared.qemu) if name in " ".join(arguments)}
    if name == "data.q":
        referee.must("qemu-img", "check", name, cwd=prepared.imgtool)
        name = "data.raw"
    same_disks(prepared, name)
    if name.endswith(".raw"):
        sizes = [(base / name).stat().st_size for base in (prepared.qemu, prepared.imgtool)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("resize", *arguments) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes()


def test_a_guess_is_refused(prepared: Twins) -> None:
    theirs, ours = prepared.run("resize", "disk.raw", "3M")
    assert (theirs.status, ours.status) == (0, 1)
    assert (prepared.imgtool / "disk.raw").stat().st_size == 2 << 20
