"""Info on images that are damaged, and on storages that are no files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgtool
from imgtool.chain import Reference
from imgtool.errors import CorruptImage, ImageError
from imgtool.ops.info import info
from imgtool.storage.memory import MemoryStorage
from tests.kit.effort import PROFILE


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M", backing_file="b", backing_format="raw", unsafe=True)
    return path.read_bytes()


def test_memory(image: bytes) -> None:
    found = info(Reference(MemoryStorage(image, "m")))
    assert (found.filename, found.format, found.virtual_size) == ("m", "qcow2", 1 << 20)
    assert (found.backing_filename, found.full_backing_filename) == ("b", None)
    assert found.children[0].info.to_dict() == {
        "children": [],
        "virtual-size": len(image),
        "filename": "m",
        "format": "file",
        "actual-size": len(image),
        "format-specific": {"type": "file", "data": {}},
        "dirty-flag": False,
    }


def test_a_chain_that_is_a_loop(tmp_path: Path) -> None:
    for name, below in (("a", "b"), ("b", "a")):
        imgtool.create(
            tmp_path / name,
            "1M",
            format="qcow2",
            backing_file=below,
            backing_format="qcow2",
            unsafe=True,
        )
    assert imgtool.info(tmp_path / "a").backing_filename == "b"
    with pytest.raises(ImageError, match="loop"):
        imgtool.info(tmp_path / "a", backing_chain=True)


def test_the_users_word_on_the_chain(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "base.raw", "1M")
    imgtool.create(
        tmp_path / "top.qcow2", "1M", backing_file="x", backing_format="raw", unsafe=True
    )
    below = {"backing": Reference(tmp_path / "base.raw", "raw")}
    chosen = Reference(tmp_path / "top.qcow2", "qcow2", {}, below)
    assert [image.filename for image in info(chosen, backing_chain=True).backing_chain] == [
        str(tmp_path / "base.raw")
    ]
    nothing = Reference(tmp_path / "top.qcow2", "qcow2", {}, {"backing": None})
    assert info(nothing, backing_chain=True).backing_chain == ()


def test_damaged_tables_are_named(image: bytes) -> None:
    damaged = bytearray(image)
    damaged[60:64] = (1).to_bytes(4, "big")  # one snapshot
    damaged[64:72] = (1 << 40).to_bytes(8, "big")  # whose table lies nowhere
    with pytest.raises(CorruptImage) as caught:
        info(Reference(MemoryStorage(damaged, "m")))
    assert (caught.value.filename, caught.value.opening) == ("m", ("m",))


def _damages(image: bytes, count: int) -> Iterator[bytes]:
    chooser = random.Random(20240)
    header = 512
    for _ in range(count):
        damaged = bytearray(image)
        for _ in range(chooser.randint(1, 4)):
            damaged[chooser.randrange(4, header)] = chooser.choice((0, 1, 0x7F, 0x80, 0xFF))
        yield bytes(damaged[: chooser.choice((len(image), chooser.randrange(len(image))))])


def test_nothing_else_escapes(image: bytes) -> None:
    blamed = []
    described = 0
    for damaged in _damages(image, 2000 if PROFILE == "long" else 400):
        try:
            info(Reference(MemoryStorage(damaged, "m"), "qcow2")).to_dict()
            described += 1
        except ImageError as error:
            blamed.append(error.filename)
    assert described > 20
    assert set(blamed) == {"m"}
