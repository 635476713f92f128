"""The allocator against a dictionary of refcounts: who has which cluster, and who is counted."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.errors import CorruptImage, ImageError
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.refcounts import unpack_block
from imgtool.schema.fields import big_endian_u64
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage
from tests.kit.effort import effort
from tests.kit.faults import FailingStorage

TABLE = 1  # the index of the refcount table's first cluster


def fresh(geometry: Geometry, clusters: int = 1) -> tuple[Allocator, MemoryStorage]:
    """An allocator of a new image: header, refcount table, and one cluster more."""
    storage = MemoryStorage()
    table = array("Q", bytes(clusters * geometry.cluster_size))
    allocator = Allocator(storage, geometry, table, TABLE << geometry.cluster_bits)
    allocator.take_region(TABLE + clusters, 1, before=TABLE + clusters)
    return allocator, storage


def stored(allocator: Allocator, storage: Storage, geometry: Geometry) -> dict[int, int]:
    """The refcounts as they lie in the file, by cluster."""
    size = len(allocator.table) * 8
    table = big_endian_u64(storage.read_at(allocator.table_offset, size))
    assert table == allocator.table
    found = {}
    for number, offset in enumerate(table):
        if offset:
            assert offset % geometry.cluster_size == 0
            block = unpack_block(
                storage.read_at(offset, geometry.cluster_size), geometry.refcount_order
            )
            for slot in np.flatnonzero(block).tolist():
                found[number * geometry.refcount_block_entries + slot] = int(block[slot])
    return found


def metadata_clusters(allocator: Allocator, geometry: Geometry) -> set[int]:
    """The clusters of the refcount table and of its blocks, and the header's."""
    bits = geometry.cluster_bits
    first = allocator.table_offset >> bits
    found = {0, *range(first, first + len(allocator.table) * 8 // geometry.cluster_size)}
    found.update(offset >> bits for offset in allocator.table if offset)
    return found


class Model:
    """Counts along with an allocator, and finds out if they differ."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.allocator, self.storage = fresh(geometry)
        #: The refcounts of what has been handed out.
        self.held: dict[int, int] = {}
        bits = geometry.cluster_bits
        # The one cluster behind the table and its first block.
        self.other = {
            index for index in range(16) if self.allocator.refcount(index)
        } - metadata_clusters(self.allocator, geometry)
        assert len(self.other) == 1
        self._bits = bits

    def take(self, offset: int, count: int) -> None:
        assert offset % self.geometry.cluster_size == 0
        assert count > 0
        first = offset >> self._bits
        taken = set(range(first, first + count))
        assert not taken & set(self.held)
        assert not taken & self.other
        assert not taken & metadata_clusters(self.allocator, self.geometry)
        self.held.update((index, 1) for index in taken)

    def change(self, first: int, count: int, by: int) -> None:
        self.allocator.change(first << self._bits, count, by)
        for index in range(first, first + count):
            self.held[index] += by
            if not self.held[index]:
                del self.held[index]

    def retire(self) -> None:
        """Free replaced tables, as their owner does once the header names the new one."""
        retired, self.allocator.retired = self.allocator.retired, []
        for offset, count in retired:
            self.allocator.change(offset, count, -1)

    def check(self) -> None:
        """Write everything, and compare all that is counted with all that is known."""
        self.retire()
        self.allocator.write_blocks()
        self.allocator.write_table()
        assert self.allocator.dirty_bytes == 0
        expected = dict(self.held)
        expected.update((index, 1) for index in self.other)
        expected.update((i, 1) for i in metadata_clusters(self.allocator, self.geometry))
        assert stored(self.allocator, self.storage, self.geometry) == expected

    def reopen(self) -> None:
        """Go on with an allocator that knows only what is in the file."""
        old = self.allocator
        self.allocator = Allocator(self.storage, self.geometry, old.table[:], old.table_offset)


geometries = st.builds(
    Geometry, st.sampled_from([9, 9, 10, 12]), st.sampled_from(range(7)), st.just(False)
)

_KINDS = ["take", "take", "contiguous", "drop", "again", "many", "flush", "open"]


@settings(max_examples=effort(60))
@given(geometry=geometries, data=st.data())
def test_sequences(geometry: Geometry, data: st.DataObject) -> None:
    model = Model(geometry)
    wanted = st.sampled_from([1, 1, 2, 5, 63, 64, 500])
    for _ in range(data.draw(st.integers(1, 25))):
        kind = data.draw(
            st.sampled_from(
                ["take", "take", "contiguous", "drop", "again", "many", "flush", "open"]
            )
        )
        if kind == "take":
            asked = data.draw(wanted)
            offset, count = model.allocator.allocate(asked)
            assert 0 < count <= asked
            model.take(offset, count)
        elif kind == "contiguous":
            asked = data.draw(wanted)
            model.take(model.allocator.allocate_contiguous(asked), asked)
        elif kind in ("drop", "again") and model.held:
            first = data.draw(st.sampled_from(sorted(model.held)))
            count = 1
            while first + count in model.held and data.draw(st.integers(0, 3)):
                count += 1
            by = -1 if kind == "drop" else 1
            top = max(model.held[index] for index in range(first, first + count))
            if top + by <= geometry.max_refcount:
                model.change(first, count, by)
        elif kind == "many" and model.held:
            chosen = sorted(
                index for index in data.draw(st.sets(st.sampled_from(sorted(model.held))))
            )
            model.allocator.change_many(np.array(chosen, dtype=np.uint64), -1)
            for index in chosen:
                model.held[index] -= 1
                if not model.held[index]:
                    del model.held[index]
        elif kind == "flush":
            model.check()
        elif kind == "open":
            model.check()
            model.reopen()
    model.check()
    for index in range(64):
        known = index in model.other or index in metadata_clusters(model.allocator, geometry)
        assert model.allocator.refcount(index) == model.held.get(index, int(known))


@pytest.mark.parametrize("order", [3, 4, 6])
def test_the_table_grows(order: int) -> None:
    # With clusters of 512 bytes a table of one cluster has 64 blocks, of 64 to 512 clusters each.
    geometry = Geometry(9, order)
    model = Model(geometry)
    target = geometry.refcount_block_entries * 64 * 3
    while len(model.held) < target:
        model.take(*model.allocator.allocate(100_000))
    assert len(model.allocator.table) > 64
    assert model.allocator.retired
    model.check()
    # What the old tables took is handed out again.
    model.reopen()
    before = len(model.held)
    model.take(*model.allocator.allocate(1))
    assert min(set(model.held)) < 8
    assert len(model.held) == before + 1
    model.check()


def test_a_region_larger_than_the_table_reaches() -> None:
    geometry = Geometry(9, 4)
    model = Model(geometry)
    wanted = 256 * 64 * 5
    model.take(model.allocator.allocate_contiguous(wanted), wanted)
    model.check()


def test_lowest_first_and_freed_again() -> None:
    model = Model(Geometry(9, 4))
    offset, count = model.allocator.allocate(50)
    model.take(offset, count)
    first = offset >> 9
    model.change(first + 10, 5, -1)
    model.change(first + 20, 1, -1)
    assert model.allocator.freed == [(first + 10, 5), (first + 20, 1)]
    assert model.allocator.allocate(9) == ((first + 10) << 9, 5)
    assert model.allocator.allocate(9) == ((first + 20) << 9, 1)


def test_changes_that_cannot_be() -> None:
    geometry = Geometry(9, 1)
    allocator, _ = fresh(geometry)
    offset, _ = allocator.allocate(1)
    allocator.change(offset, 1, +2)
    with pytest.raises(ImageError, match="exceeds 2 bits"):
        allocator.change(offset, 1, +1)
    with pytest.raises(CorruptImage, match="refcount of zero"):
        allocator.change(offset + 512, 1, -1)
    with pytest.raises(CorruptImage, match="refcount of zero"):
        allocator.change(1 << 40, 1, -1)
    assert allocator.refcount(offset >> 9) == 3
    assert allocator.refcount(1 << 40) == 0


def test_what_a_broken_table_says_is_not_believed() -> None:
    geometry = Geometry(9, 4)
    storage = MemoryStorage(bytes(4096))
    unaligned = Allocator(storage, geometry, array("Q", [512 + 8] + [0] * 63), 512)
    # Bits below 9 are reserved: what is left is aligned to 512 bytes.
    assert unaligned.refcount(0) == 0
    larger = Geometry(12, 4)
    with pytest.raises(CorruptImage, match="not aligned"):
        Allocator(storage, larger, array("Q", [512] + [0] * 511), 4096).allocate(1)
    with pytest.raises(CorruptImage, match="past the end"):
        Allocator(storage, larger, array("Q", [1 << 40] + [0] * 511), 4096).allocate(1)
    with pytest.raises(CorruptImage, match="header"):
        Allocator(storage, geometry, array("Q", [512] + [0] * 63), 1024).allocate(1)


def test_a_full_image_is_refused() -> None:
    # All blocks of the largest table are one block, and that is full: nothing is free anywhere.
    geometry = Geometry(21, 6)
    storage = MemoryStorage(b"\xff" * (1 << 21))
    table = array("Q", [0]) * (8 << 20 >> 3)
    allocator = Allocator(storage, geometry, table, 1 << 21)
    allocator._cursor = len(table) * geometry.refcount_block_entries
    with pytest.raises(ImageError, match="full"):
        allocator.allocate(1)
    with pytest.raises(ImageError, match="full"):
        allocator._grow_table(len(table) * geometry.refcount_block_entries)
    assert allocator.retired == []


def test_a_table_that_can_barely_grow() -> None:
    geometry = Geometry(9, 6)
    largest = 8 << 20 >> 3
    table = array("Q", [0]) * (largest - 64)
    allocator = Allocator(MemoryStorage(), geometry, table, 512)
    allocator._cursor = len(table) * geometry.refcount_block_entries
    with pytest.raises(ImageError, match="full"):
        allocator.allocate(1)
    assert len(allocator.table) == largest - 64


def test_blocks_in_memory_are_bounded() -> None:
    # A thousand blocks of 64 KiB that count nothing free: 64 MiB if all were kept.
    geometry = Geometry(16, 4)
    inner = MemoryStorage(b"\0\1" * (1 << 15))
    storage = FailingStorage(inner, lambda kind, offset, length: 0)
    storage.size = lambda: 1 << 40  # type: ignore[method-assign]
    storage.read_exact = lambda offset, length, what: bytearray(b"\0\1" * (1 << 15))  # type: ignore[method-assign]
    table = array("Q", range(1 << 16, 1001 << 16, 1 << 16))
    table.extend([0] * (8192 - len(table)))
    allocator = Allocator(storage, geometry, table, 1 << 36)
    offset, _ = allocator.allocate(1)
    assert offset >> 16 == 1000 * 32768 + 1
    assert len(allocator._blocks) <= 2 * 64 + 2
