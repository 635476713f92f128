"""Persistent bitmaps of images that are written to: what is on disk at any moment."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

import pytest

import imgtool
from imgtool.errors import ImageError
from imgtool.formats.qcow2.bitmaps import read_bitmaps
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.ops.create import create
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import ANY, open_disk


def image(path: Path, size: int = 1 << 20) -> Path:
    create(path, size, format="qcow2")
    return path


def writing(path: Path) -> WritableQcow2:
    device = open_disk(path, "qcow2", policy=ANY, writable=True)
    assert isinstance(device, WritableQcow2)
    return device


def test_a_new_bitmap_has_a_table_as_soon_as_it_is_named(tmp_path: Path) -> None:
    """A crash after the first write: QEMU opens no image with a bitmap that has no table."""
    path = image(tmp_path / "a.qcow2")
    with writing(path) as device:
        device.bitmap_store.add("new")
        device.write_at(0, b"x" * 512)
        device.flush()
        (entry,) = read_bitmaps(MemoryStorage(path.read_bytes()), device.header)
        assert entry.table_offset
        assert entry.table_size == 1
    assert list(imgtool.dirty_ranges(path, "new")) == [(0, 65536)]
    assert imgtool.check(path).clean


def test_a_disk_of_no_bytes_has_no_bitmaps(tmp_path: Path) -> None:
    """Such a bitmap would have no table either."""
    path = image(tmp_path / "a.qcow2", 0)
    with pytest.raises(ImageError, match="0 bytes"):
        imgtool.bitmap(path, "new", "add")
    path = image(tmp_path / "b.qcow2")
    imgtool.bitmap(path, "new", "add")
    before = path.read_bytes()
    with writing(path) as device, pytest.raises(ImageError, match="0 bytes"):
        device.resize(0)
    assert path.read_bytes() == before


@pytest.mark.parametrize("action", ["remove", "clear"])
def test_a_damaged_bitmap_can_be_got_rid_of(
    action: Literal["remove", "clear"], tmp_path: Path
) -> None:
    path = image(tmp_path / "a.qcow2")
    imgtool.bitmap(path, "bad", "add")
    with writing(path) as device:
        extension = device.header.bitmaps
    assert extension is not None
    with open(path, "r+b") as file:
        file.seek(extension.directory_offset)
        file.write(struct.pack(">Q", 1 << 40))  # where its table lies
    imgtool.bitmap(path, "bad", action)
    if action == "clear":
        assert list(imgtool.dirty_ranges(path, "bad")) == []
    found = imgtool.check(path)
    assert (found.corruptions, found.leaks) == (0, 1)  # its table: nobody names it any more


def test_free_space_is_reused_by_bitmaps(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    imgtool.bitmap(path, "one", "add")
    for _ in range(3):
        imgtool.bitmap(path, "one", "clear")
    size = os.path.getsize(path)
    for _ in range(20):
        imgtool.bitmap(path, "one", "clear")
    assert os.path.getsize(path) == size
