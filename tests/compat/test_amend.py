"""``amend`` next to ``qemu-img amend``: status, output, what the image is then, its contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit import referee

AMENDED = [
    ("compat=0.10", "disk.q"),
    ("compat=v2", "disk.q"),
    ("compat=0.10", "overlay.q"),
    ("compat=0.10", "lazy.q"),
    ("compat=0.10,lazy_refcounts=off,refcount_bits=16", "lazy.q"),
    ("compat=0.10", "packed.q"),
    ("compat=1.1", "disk.q"),
    ("compat=1.1", "old.q"),
    ("compat=v3,lazy_refcounts=on,refcount_bits=32", "old.q"),
    ("compat=0.10", "old.q"),
    ("compat=1.1", "oldsnap.q"),
    ("lazy_refcounts=on", "disk.q"),
    ("lazy_refcounts=off", "lazy.q"),
    ("lazy_refcounts=on", "sub.q"),
    ("refcount_bits=8", "disk.q"),
    ("refcount_bits=1", "disk.q"),
    ("refcount_bits=64", "disk.q"),
    ("refcount_bits=16", "disk.q"),
    ("refcount_bits=4", "snap.q"),
    ("refcount_bits=32", "snap.q"),
    ("refcount_bits=64", "packed.q"),
    ("refcount_bits=16", "wide.q"),
    ("compat=0.10,refcount_bits=16", "wide.q"),
    ("refcount_bits=64", "tiny.q"),
    ("size=3M", "disk.q"),
    ("size=2M", "disk.q"),
    ("size=1M", "disk.q"),
    ("size=3M,lazy_refcounts=on", "snap.q"),
    ("size=4M,compat=0.10", "overlay.q"),
    ("data_file_raw=off", "data.q"),
    ("data_file_raw=on", "data.q"),
    ("compat=0.10", "snap.q"),
    ("compat=0.10,lazy_refcounts=on", "lazy.q"),
    ("backing_file=disk.q,backing_fmt=qcow2", "overlay.q"),
    ("backing_file=disk.q,backing_fmt=qcow2,refcount_bits=8", "overlay.q"),
]

REFUSED = [
    ("compat=1.2", "disk.q"),
    ("compat=0.10", "sub.q"),
    ("compat=0.10", "data.q"),
    ("compat=0.10", "narrow.q"),
    ("compat=0.10", "grown.q"),
    ("compat=0.10,lazy_refcounts=on", "disk.q"),
    ("compat=0.10,refcount_bits=8", "disk.q"),
    ("lazy_refcounts=on", "old.q"),
    ("lazy_refcounts=perhaps", "disk.q"),
    ("refcount_bits=8", "old.q"),
    ("refcount_bits=3", "disk.q"),
    ("refcount_bits=0", "disk.q"),
    ("refcount_bits=128", "disk.q"),
    ("refcount_bits=1", "snap.q"),
    ("refcount_bits=1", "packed.q"),
    ("size=3000001", "disk.q"),
    ("size=big", "disk.q"),
    ("size=3M", "oldsnap.q"),
    ("data_file=other.raw", "disk.q"),
    ("data_file_raw=on", "disk.q"),
    ("backing_file=base.q", "disk.q"),
    ("backing_file=base.q,backing_fmt=qcow2", "overlay.q"),
    ("backing_file=disk.q", "overlay.q"),
    ("backing_fmt=raw", "overlay.q"),
    ("cluster_size=4k", "disk.q"),
    ("preallocation=full", "disk.q"),
    ("extended_l2=on", "disk.q"),
    ("compression_type=zstd", "disk.q"),
    ("bogus=1", "disk.q"),
    ("", "disk.q"),
    ("size=3M", "nowhere.q"),
]

#: Arguments that are not ``-o OPTIONS FILE``; nothing is changed by them.
ODD = [
    (),
    ("disk.q",),
    ("-o",),
    ("-o", "size=3M"),
    ("-o", "size=3M", "disk.q", "old.q"),
    ("-o", "size=3M", "-f", "raw", "disk.raw"),
    ("-o", "help", "-f", "raw"),
    ("-o", "size=3M", "-f", "bogus", "disk.q"),
    ("-o", "size=3M", "-t", "bogus", "disk.q"),
    ("-o", "size=3M", "--bogus", "disk.q"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = Workshop(tmp_path_factory.mktemp("amend") / "images")
    writes = ("write -P 1 0 300k", "write -z 400k 200k", "write -P 2 1500k 100k", "discard 0 64k")
    for name, options in (
        ("disk.q", ""),
        ("lazy.q", "lazy_refcounts=on"),
        ("old.q", "compat=0.10"),
        ("oldsnap.q", "compat=0.10"),
        ("sub.q", "extended_l2=on"),
        ("data.q", "data_file=data.raw,data_file_raw=on"),
        ("narrow.q", "refcount_bits=8"),
        ("wide.q", "refcount_bits=64"),
        ("tiny.q", "cluster_size=512"),
        ("snap.q", ""),
        ("grown.q", ""),
        ("packed.q", ""),
    ):
        shop.create(Path(name), "qcow2", "2M", options)
        shop.io(Path(name), "qcow2", *writes)
    for name in ("snap.q", "oldsnap.q", "grown.q"):
        shop.img("snapshot", "-c", "one", name)
        shop.io(Path(name), "qcow2", "write -P 5 100k 200k")
    shop.img("resize", "-q", "grown.q", "3M")
    shop.io(Path("packed.q"), "qcow2", "write -c -P 6 1M 64k", "write -c -P 7 1152k 64k")
    shop.create(Path("overlay.q"), "qcow2", "3M", "backing_file=disk.q,backing_fmt=qcow2")
    shop.io(
        Path("overlay.q"), "qcow2", "write -z 1408k 256k", "write -z 64k 64k", "write -z 2560k 1k"
    )
    shop.create(Path("disk.raw"), "raw", "2M", "")
    shop.create(Path("many.q"), "qcow2", "2M", "")
    shop.create(Path("oversnap.q"), "qcow2", "2M", "backing_file=disk.q,backing_fmt=qcow2")
    for name in ("many.q", "oversnap.q"):
        for number in ("1", "2", "3"):
            shop.io(
                Path(name), "qcow2", f"write -P {number} {number}00k 600k", "write -z 320k 128k"
            )
            shop.img("snapshot", "-c", number, name)
        shop.io(Path(name), "qcow2", "write -P 9 300k 100k")
    return shop.directory


def _described(path: Path) -> dict[str, Any]:
    found = json.loads(
        referee.must("qemu-img", "info", "--output=json", path.name, cwd=path.parent)
    )
    for name in ("actual-size", "children"):
        del found[name]
    described: dict[str, Any] = found
    return described


@pytest.mark.parametrize(("options", "name"), AMENDED)
def test_amended(prepared: Twins, options: str, name: str) -> None:
    assert prepared.alike("amend", "-o", options, name) == 0
    assert _described(prepared.imgtool / name) == _described(prepared.qemu / name)
    if name == "data.q":
        referee.must("qemu-img", "check", name, cwd=prepared.imgtool)
        name = "data.raw"
    same_disks(prepared, name)


@pytest.mark.parametrize(("options", "name"), REFUSED)
def test_refused(prepared: Twins, images: Path, options: str, name: str) -> None:
    assert prepared.alike("amend", "-o", options, name) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arguments", ODD)
def test_odd_arguments(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("amend", *arguments) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes()


def test_quiet_and_specified(prepared: Twins) -> None:
    for arguments in (
        ("-q", "-t", "none", "-o", "lazy_refcounts=on", "-f", "qcow2", "disk.q"),
        ("--force", "-o", "lazy_refcounts=on", "-o", "size=3M", "disk.q"),
        ("-o", "compat=0.10", "--image-opts", "driver=qcow2,file.filename=disk.q"),
    ):
        assert prepared.alike("amend", *arguments) == 0
    same_disks(prepared, "disk.q")


def test_snapshots_are_kept_by_a_downgrade(prepared: Twins) -> None:
    for name in ("many.q", "oversnap.q"):
        theirs, ours = prepared.run("amend", "-o", "compat=0.10", name)
        assert theirs.status == 0
        if name == "oversnap.q":
            # Zero clusters of a snapshot would have to hide what the backing file has there.
            assert ours.status == 1
            continue
        assert ours.status == 0
        same_disks(prepared, name)
        for number in ("1", "2", "3"):
            for base in (prepared.qemu, prepared.imgtool):
                arguments = ("convert", "-l", f"snapshot.id={number}", "-O", "raw", name)
                referee.must("qemu-img", *arguments, f"{number}.raw", cwd=base)
            same_disks(prepared, f"{number}.raw")


def test_a_refcount_does_not_fit(prepared: Twins) -> None:
    """The snapshot and the disk share clusters: one bit cannot count to two."""
    theirs, ours = prepared.run("amend", "-o", "refcount_bits=1", "snap.q")
    assert (theirs.status, ours.status) == (1, 1)
    assert referee.check(prepared.imgtool / "snap.q")["exit"] == 0
