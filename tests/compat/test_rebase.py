"""``rebase`` next to ``qemu-img rebase``: contents, what is recorded, output and exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from tests.compat.chains import OVERLAYS, make_chain
from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.kit import referee

BACKINGS = [
    ("-b", "other.q", "-F", "qcow2"),
    ("-b", "short.q", "-F", "qcow2"),
    ("-b", "long.q", "-F", "qcow2"),
    ("-b", "base.raw", "-F", "raw"),
    ("-b", "mid.q", "-F", "qcow2"),
    ("-b", "other.q", "-F", "raw"),
    ("-b", ""),
    ("-c", "-b", ""),
    ("-c", "-b", "other.q", "-F", "qcow2"),
]

UNSAFE = [
    ("-u", "-b", "other.q", "-F", "qcow2", "top.q"),
    ("-u", "-b", "nope", "-F", "raw", "top.q"),
    ("-u", "-b", "some/where/else", "-F", "vmdk", "top.q"),
    ("-u", "-b", "", "top.q"),
    ("-u", "top.q"),
    ("-u", "-F", "qcow2", "top.q"),
    ("-u", "-b", "nope", "-F", "raw", "alone.q"),
    ("-u", "-b", "nope", "-F", "raw", "old.q"),
]

OTHERS = [
    ("-q", "-b", "other.q", "-F", "qcow2", "top.q"),
    ("-U", "-t", "unsafe", "-T", "none", "-b", "other.q", "-F", "qcow2", "top.q"),
    ("-f", "qcow2", "-b", "./other.q", "-F", "qcow2", "top.q"),
    ("--image-opts", "-b", "other.q", "-F", "qcow2", "driver=qcow2,file.filename=top.q"),
    ("-b", "other.q", "-F", "qcow2", "alone.q"),
    ("-b", "long.q", "-F", "qcow2", "alone.q"),
    ("-b", "", "alone.q"),
]

REFUSED = [
    (),
    ("top.q",),
    ("-F", "qcow2", "top.q"),
    ("-b", "other.q", "top.q", "mid.q"),
    ("-b", "nope", "-F", "qcow2", "top.q"),
    ("-b", "other.q", "-F", "bogus", "top.q"),
    ("-u", "-b", "other.q", "top.q"),
    ("-u", "-b", "other.q", "-F", "bogus", "top.q"),
    ("-b", "top.q", "-F", "qcow2", "top.q"),
    ("-b", "top.q", "-F", "qcow2", "mid.q"),
    ("-t", "bogus", "-b", "", "top.q"),
    ("-T", "bogus", "-b", "", "top.q"),
    ("-f", "raw", "-u", "-b", "other.q", "-F", "qcow2", "base.raw"),
    ("-b", "", "nowhere.q"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("rebase") / "images")


def _same_names(twins: Twins, name: str) -> None:
    found = [imgtool.info(str(base / name)) for base in (twins.qemu, twins.imgtool)]
    assert found[0].backing_filename == found[1].backing_filename
    assert found[0].backing_filename_format == found[1].backing_filename_format


#: Every overlay on nothing and on another image; the rest for those that differ most.
CASES = [
    (arguments, name)
    for arguments in BACKINGS
    for name in OVERLAYS
    if name in ("top.q", "old.q", "sub.q") or arguments in (BACKINGS[0], BACKINGS[6])
]


@pytest.mark.parametrize(("arguments", "name"), CASES, ids=lambda value: "".join(value))
def test_contents_stay(
    prepared: Twins, images: Path, arguments: tuple[str, ...], name: str
) -> None:
    theirs, ours = prepared.run("rebase", *arguments, name)
    # qemu-img aborts where subclusters are to be compressed.
    if (arguments[0], name) != ("-c", "sub.q"):
        assert ours == theirs
        _same_names(prepared, name)
    assert ours.status == 0
    assert referee.compare(images / name, prepared.imgtool / name, "qcow2", "qcow2")
    assert referee.check(prepared.imgtool / name)["exit"] == 0
    for path in images.iterdir():
        if path.name != name:
            assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("arguments", UNSAFE, ids=" ".join)
def test_unsafe(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("rebase", *arguments) == 0
    _same_names(prepared, arguments[-1])
    assert imgtool.check(prepared.imgtool / arguments[-1]).clean


@pytest.mark.parametrize("arguments", OTHERS, ids=" ".join)
def test_options(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("rebase", *arguments) == 0
    name = arguments[-1].rpartition("=")[2]
    _same_names(prepared, name)
    same_disks(prepared, name)


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_refused(prepared: Twins, images: Path, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("rebase", *arguments) == 1
    for path in images.iterdir():
        assert (prepared.imgtool / path.name).read_bytes() == path.read_bytes(), path.name


def test_progress(prepared: Twins) -> None:
    _, ours = prepared.run("rebase", "-p", "-b", "", "top.q")
    assert ours.stdout.startswith("    (0.00/100%)\r")
    assert ours.stdout.endswith("    (100.00/100%)\r\n")


def test_a_wrong_format_is_refused_in_the_old_chain_too(prepared: Twins) -> None:
    theirs, ours = prepared.run("rebase", "-b", "base.raw", "-F", "qcow2", "top.q")
    assert (theirs.status, ours.status) == (0, 1)


def test_an_image_is_not_put_on_itself(prepared: Twins) -> None:
    theirs, ours = prepared.run("rebase", "-u", "-b", "top.q", "-F", "qcow2", "top.q")
    assert (theirs.status, ours.status) == (0, 1)
