"""Who has images repaired: opening for writing, and the library."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from imgtool.errors import ReadOnly
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import LOST, built, mark
from tests.formats.qcow2.repair.judging import judged, marks, seen
from tests.kit.disks import open_disk
from tests.kit.qcow2 import CORRUPT, DIRTY


def test_opening_a_dirty_image_for_writing_repairs_it() -> None:
    builder, image = built("4k")
    storage = MemoryStorage(LOST(builder, image))
    before = seen(storage.getvalue())
    with open_disk(storage, "qcow2", writable=True) as disk:
        disk.write_at(0, b"x")
    after = storage.getvalue()
    assert judged(after).corruptions == 0
    assert not marks(after) & DIRTY
    assert before[None][1:] == seen(after)[None][1:]


def test_opening_a_corrupt_image_for_writing_is_refused() -> None:
    builder, image = built("4k")
    storage = MemoryStorage(mark(DIRTY | CORRUPT)(builder, image), "x.img")
    with pytest.raises(ReadOnly, match=r"imgtool check -r all 'x\.img'"):
        open_disk(storage, "qcow2", writable=True)


def test_the_library(tmp_path: Path) -> None:
    builder, image = built("v3")
    path = tmp_path / "x.qcow2"
    path.write_bytes(LOST(builder, image))
    foretold = imgtool.check(path, repair="all", dry_run=True)
    assert foretold.corruptions
    assert path.read_bytes() == LOST(builder, image)
    report = imgtool.check(path, repair="all")
    assert report.clean
    assert report.corruptions_fixed == foretold.corruptions_fixed
    assert imgtool.check(path).clean
    with pytest.raises(imgtool.BadOption):
        imgtool.check(path, repair="everything")
    with pytest.raises(imgtool.BadOption):
        imgtool.check(path, dry_run=True)
