"""``commit`` next to ``qemu-img commit``: what the base and the overlay hold afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compat.chains import OVERLAYS, make_chain
from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.kit import referee

REFUSED = [
    (),
    ("top.q", "mid.q"),
    ("-b", "nope", "top.q"),
    ("-b", "top.q", "top.q"),
    ("-b", "", "top.q"),
    ("-b", "other.q", "top.q"),
    ("-r", "x", "top.q"),
    ("-t", "bogus", "top.q"),
    ("-f", "raw", "base.raw"),
    ("-f", "bogus", "top.q"),
    ("base.raw",),
    ("alone.q",),
    ("nowhere.q",),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("commit") / "images")


@pytest.mark.parametrize("name", OVERLAYS)
def test_commit(prepared: Twins, name: str) -> None:
    assert prepared.alike("commit", name) == 0
    same_disks(prepared, name, "mid.q", "base.raw")
    # Nothing is left in the overlay.
    found = json.loads(referee.must("qemu-img", "map", "--output=json", prepared.imgtool / name))
    assert all(extent["depth"] > 0 or not extent["present"] for extent in found)


@pytest.mark.parametrize("name", OVERLAYS)
def test_drop(prepared: Twins, name: str) -> None:
    before = (prepared.qemu / name).read_bytes()
    assert prepared.alike("commit", "-d", name) == 0
    assert (prepared.imgtool / name).read_bytes() == before
    same_disks(prepared, "mid.q", "base.raw", name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_further_down(prepared: Twins, name: str) -> None:
    before = (prepared.qemu / name).read_bytes()
    assert prepared.alike("commit", "-b", "base.raw", name) == 0
    assert (prepared.imgtool / name).read_bytes() == before
    same_disks(prepared, "base.raw")
    sizes = {(base / "base.raw").stat().st_size for base in (prepared.qemu, prepared.imgtool)}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("-q", "top.q"),
        ("-p", "-q", "top.q"),
        ("-f", "qcow2", "-t", "unsafe", "top.q"),
        ("-r", "100M", "top.q"),
        ("-b", "mid.q", "top.q"),
        ("-b", "./mid.q", "top.q"),
        ("-d", "-b", "base.raw", "top.q"),
        ("--image-opts", "driver=qcow2,file.filename=top.q"),
        ("mid.q",),
    ],
)
def test_options(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("commit", *arguments) == 0
    same_disks(prepared, "mid.q", "base.raw", "top.q")


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("commit", *arguments) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes(), path.name


def test_progress(prepared: Twins) -> None:
    theirs, ours = prepared.run("commit", "-p", "top.q")
    assert ours.stdout.endswith("    (100.00/100%)\r\nImage committed.\n")
    assert theirs.stdout.endswith("    (100.00/100%)\r\nImage committed.\n")


def test_a_base_whose_format_is_not_recorded_is_refused(prepared: Twins) -> None:
    """qemu-img guesses the format of what it is about to write to."""
    path = prepared.qemu / "mid.q"
    data = bytearray(path.read_bytes())
    place = data.index(b"\xe2\x79\x2a\xca")
    data[place : place + 4] = b"\0\0\0\1"  # an extension that nobody knows
    path.write_bytes(data)
    theirs, ours = prepared.run("commit", "mid.q")
    assert (theirs.status, ours.status) == (0, 1)
    assert (prepared.imgtool / "mid.q").read_bytes() == bytes(data)
