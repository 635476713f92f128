"""A part of a disk as a disk of its own."""

from __future__ import annotations

import random

import pytest

import imgtool
from imgtool.ops.convert.part import PartDevice
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import check_extents, check_reads


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (0, 40960), (512, 1024), (1000, 7000), (3, 1), (40959, 1), (40960, 0), (0, 513)],
)
def test_it_reads_like_the_whole_from_there_on(start: int, length: int) -> None:
    noise = random.Random(2).randbytes(40960)
    whole = imgtool.open(MemoryStorage(noise), format="raw")
    with PartDevice(whole, start, length) as part:
        padding = bytes(-length % 512)
        check_reads(part, noise[start : start + length] + padding)
        check_extents(part, noise[start : start + length] + padding)
        assert list(part.children.values()) == [whole]
