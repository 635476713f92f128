"""What lies in holes of the host file is passed over, and found again once it has been written."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import imgtool
from imgtool.budget import Budget
from imgtool.formats.qcow2 import tables
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK
from imgtool.formats.qcow2.stored import StoredRanges, stored_tables
from imgtool.formats.qcow2.tables import L2Tables
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.storage.base import HostRange
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage

KiB, MiB = 1 << 10, 1 << 20
GEOMETRY = Geometry(12)


class Holey(MemoryStorage):
    """Bytes in memory that say of whole blocks of zeros that they are holes."""

    asked = 0

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        self.asked += 1
        end, held = offset + length, self.getvalue()
        while offset < end:
            stop = min(end, offset - offset % 4096 + 4096)
            yield HostRange(offset, stop - offset, any(held[offset:stop]))
            offset = stop


def reached(ranges: list[tuple[int, int]], offset: int, length: int) -> bool:
    return any(start < offset + length and offset < end for start, end in ranges)


@pytest.mark.parametrize("seed", range(20))
def test_ranges(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray()
    for _ in range(chance.randrange(40)):
        data += bytes([chance.randrange(2)]) * 4096
    storage = Holey(data)
    stored = [
        (part.offset, part.offset + part.length)
        for part in storage.ranges(0, len(data))
        if part.is_data
    ]
    offsets = [chance.randrange(len(data) + 8192) for _ in range(50)]
    for length in (1, 512, 4096, 20_000):
        found = StoredRanges(storage).reach(np.array(offsets, np.int64), length).tolist()
        assert found == [reached(stored, offset, length) for offset in offsets]


def test_more_ranges_than_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come last count as stored: they are read, and found to be what they are."""
    monkeypatch.setattr("imgtool.formats.qcow2.stored._MOST_RANGES", 2)
    storage = Holey((bytes(4096) + b"x" * 4096) * 5)
    offsets = np.arange(0, 10 * 4096, 4096, dtype=np.int64)
    found = StoredRanges(storage).reach(offsets, 4096).tolist()
    assert found[:4] == [False, True, False, True]
    assert all(found[4:])


def test_tables_that_cannot_be_are_left_to_whoever_reads_them() -> None:
    storage = Holey(bytes(4 * 4096) + b"x" * 4096)
    l1 = array("Q", [0, 4096, 4 * 4096, 4096 + 512, 1 << 40, 5 * 4096])
    assert list(stored_tables(storage, GEOMETRY, l1)) == [0, 0, 1, 1, 1, 1]


def test_holes_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MANY_HOLES", 10)
    storage = Holey(bytes(1000 * 4096) + b"x" * 4096)
    budget = Budget()
    storage.account = budget.account("x")
    found = L2Tables(storage, GEOMETRY, array("Q", range(4096, 1001 * 4096, 4096)))
    taken, index = budget.taken, 0
    while (index := found.next_mapped(index, 2000)) < 2000:
        assert (found.find(index, keep=False) is not None) == (index == 999)
        index += 1
    assert index == 2000
    assert storage.asked < 15
    assert budget.taken == taken + 1000
    found.use(found.l1)
    assert found.next_mapped(0, 2000) == 0


def test_where_no_memory_is_left_they_are_asked_for_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "_MANY_HOLES", 10)
    storage = Holey(bytes(1000 * 4096))
    budget = Budget(max_memory=8192)
    storage.account = budget.account("x")
    found = L2Tables(storage, GEOMETRY, array("Q", range(4096, 1000 * 4096, 4096)))
    budget.take(budget.room())
    assert all(found.find(index, keep=False) is None for index in range(999))


def test_an_empty_table_is_read_once() -> None:
    storage = MemoryStorage(bytes(2 * 4096))
    found = L2Tables(storage, GEOMETRY, array("Q", [4096] * 100))
    assert found.next_mapped(0, 100) == 0
    table = found.find(0, keep=False)
    assert table is not None
    assert not any(table)
    assert found.next_mapped(0, 100) == 100
    assert found.find(50) is None
    mine = array("Q", [7] * 512)
    found.pin(60, mine)
    assert found.next_mapped(0, 100) == 60
    assert found.find(60) is mine
    found.unpin([60])
    assert found.next_mapped(0, 100) == 0


@pytest.mark.parametrize("seed", range(6))
def test_writing_where_tables_lie_in_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What is written is seen at once, and after a flush, whoever has looked for holes before."""
    monkeypatch.setattr(tables, "_MANY_HOLES", 1 + seed % 2)
    chance = random.Random(seed)
    path, coverage, count = tmp_path / "x.qcow2", 2 * MiB, 32
    imgtool.create(path, count * coverage, cluster_size="4k")
    with imgtool.open(path, writable=True) as device:
        for number in range(count):
            device.write_at(number * coverage, b"x")
    with imgtool.open(path, writable=True) as device:
        for number in range(count):
            device.discard(number * coverage, 4096)
        assert isinstance(device, WritableQcow2)
        places = [entry & L1_OFFSET_MASK for entry in device.l1]
    with FileStorage.open(path, writable=True) as storage:
        for place in places:
            storage.write_zeroes(place, 4096)
    truth: dict[int, bytes] = {}
    with imgtool.open(path, writable=True) as device:
        for _ in range(40):
            offset = chance.randrange(count) * coverage + 4096 * chance.randrange(4)
            step = chance.choice(("write", "zero", "flush", "map", "snapshot"))
            if step == "write":
                truth[offset] = bytes([chance.randrange(1, 256)]) * 4096
                device.write_at(offset, truth[offset])
            elif step == "zero":
                truth.pop(offset, None)
                device.write_zeroes(offset, 4096, unmap=chance.random() < 0.5)
            elif step == "flush":
                device.flush()
            elif step == "snapshot" and len(device.stored_snapshots or ()) < 3:
                device.create_snapshot("s")
            shown = {
                place
                for extent in device.extents()
                if not extent.reads_zero
                for place in range(extent.offset, extent.end, 4096)
            }
            assert shown == set(truth)
            assert device.read_at(offset, 4096) == truth.get(offset, bytes(4096))
    assert imgtool.check(path).clean
