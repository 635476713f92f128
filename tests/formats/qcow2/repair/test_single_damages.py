"""Single damages, looked at closely."""

from __future__ import annotations

import random
import struct

import pytest

import imgtool
from imgtool.formats.qcow2 import schema
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import (
    TABLE_CLUSTERS,
    TABLE_OFFSET,
    both,
    built,
    change_l2,
    fill,
    mark,
    past_end,
)
from tests.formats.qcow2.repair.judging import assert_repaired, judged, repaired, seen
from tests.kit.corrupt import patch, put
from tests.kit.disks import open_disk
from tests.kit.qcow2 import COPIED, DIRTY, ImageBuilder


@pytest.mark.parametrize("where", [0, 1, 5, 1 << 20])
@pytest.mark.parametrize("version", [2, 3])
def test_rebuilt_refcounts_stay_clear_of_entries_past_the_end(version: int, where: int) -> None:
    """The entry reads as zeros: it must not come to read the refcounts that are put there."""
    builder = ImageBuilder(1 << 20, version=version, header={"compatible_features": 1})
    content = builder.data(0) and builder.expected()[: 1 << 16]
    builder.data(5)
    image = mark(DIRTY)(builder, builder.build())
    damaged = both(past_end(where), fill("refcount-block-0", 0))(builder, image)
    # past_end() changes every third entry: take the one of cluster 5 by hand.
    l2 = builder.places["l2-0"][0]
    target = (len(image) // builder.cluster_size + where) * builder.cluster_size
    damaged = put(damaged, l2 + 5 * 8, struct.pack(">Q", target | COPIED))
    before = seen(damaged)
    assert before[None][5] == bytes(1 << 16)
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    assert seen(after)[None][5] == bytes(1 << 16)
    assert seen(after)[None][0] == content


def test_version_2_zeros_hide_the_backing_image() -> None:
    """Without zero clusters, a cluster of zeros has to be there; two entries share it."""
    builder = ImageBuilder(1 << 20, version=2, backing=b"base.raw", backing_format=b"raw")
    for index in (0, 3, 7, 9):
        builder.data(index)
    image = change_l2(lambda entry: entry | 1 << 40, every=2)(builder, builder.build())
    after, result = repaired(image)
    assert judged(after).corruptions == 0
    assert result.corruptions_fixed
    base = imgtool.chain.Reference(MemoryStorage(b"\xee" * (1 << 20)), "raw")
    with open_disk(MemoryStorage(after), "qcow2", children={"backing": base}) as disk:
        kept, zeros = disk.read_at(0, 1 << 16), disk.read_at(3 << 16, 1 << 16)
        assert kept == builder.expected()[: 1 << 16]
        assert not any(zeros)
        assert not any(disk.read_at(9 << 16, 1 << 16))
        assert disk.read_at(1 << 16, 1 << 16) == b"\xee" * (1 << 16)


@pytest.mark.parametrize("order", range(7))
def test_two_guest_clusters_upon_one_another(order: int) -> None:
    builder = ImageBuilder(1 << 20, cluster_bits=12, refcount_order=order)
    host = builder.data(0)
    builder.data(1)
    builder.data(2)
    first = builder.expected()[:4096]
    image = builder.build()
    l2 = builder.places["l2-0"][0]
    damaged = image
    for index in (1, 5, 9):
        damaged = put(damaged, l2 + 8 * index, struct.pack(">Q", host | COPIED))
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    # What is written to one of them shows in that one alone.
    storage = MemoryStorage(after)
    with open_disk(storage, "qcow2", writable=True) as disk:
        disk.write_at(5 * 4096, b"new" * 1000)
        disk.flush()
        for index in (0, 1, 9):
            assert disk.read_at(index * 4096, 4096) == first
        assert disk.read_at(5 * 4096, 3000) == b"new" * 1000
    assert judged(storage.getvalue()).corruptions == 0


def test_tables_that_lie_upon_data_move_and_leave_the_data_as_they_are() -> None:
    builder = ImageBuilder(1 << 20, cluster_bits=12)
    junk = random.Random(1).randbytes(4096)
    host = builder.data(0, junk)
    builder.data(3)
    image = builder.build()
    # L1 entry 1 takes a guest's data for an L2 table.
    damaged = put(image, builder.places["l1"][0] + 8, struct.pack(">Q", host | COPIED))
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    assert seen(after)[None][0] == junk


def test_snapshots_that_share_with_refcounts_of_one_bit() -> None:
    """Everything is named twice, tables and data, and nothing can be counted twice."""
    builder = ImageBuilder(1 << 20, cluster_bits=12, refcount_order=4)
    for index in range(6):
        builder.data(index)
    builder.compressed(8)
    builder.compressed(9)
    builder.snapshot(b"1", b"first")
    builder.data(2)
    image = put(builder.build(), 96, struct.pack(">I", 0))
    after, _ = repaired(image)
    assert_repaired(image, after)
    assert seen(after)["1"] == seen(image)["1"]


def test_snapshots_that_cannot_be_read_become_empty_and_others_stay() -> None:
    builder, image = built("v3")
    table = builder.places["snapshots"][0]
    damaged = put(image, table, struct.pack(">Q", 0x10200))
    after, result = repaired(damaged)
    assert_repaired(damaged, after)
    assert result.corruptions_fixed
    assert seen(after)["2"] == seen(image)["2"]
    assert seen(after)[None] == seen(image)[None]


def test_a_snapshot_whose_name_ends_past_the_end_of_the_file() -> None:
    """The table is written anew: it would be refused as it stands."""
    builder, image = built("4k")
    place, _ = builder.places["snapshots"]
    image = patch(image, schema.SNAPSHOT_HEAD, place, name_size=60_000)
    after, result = repaired(image)
    assert any("past the end of the file" in line for line in result.messages)
    assert_repaired(image, after)


def test_what_names_no_table_is_given_none() -> None:
    """The header is counted twice, which one bit cannot say: L1 entries of zeros stay so."""
    builder, image = built("refcount-1")
    image = put(image, builder.places["l1"][0], struct.pack(">Q", COPIED | 4))
    image = put(image, TABLE_OFFSET, bytes(8))
    after, _ = repaired(image)
    assert all(piece is not None and not any(piece) for piece in seen(after)[None])
    assert_repaired(image, after)


def test_clusters_that_a_repair_adds_are_not_compared() -> None:
    _, image = built("refcount-32")
    image = put(image, 36, struct.pack(">I", 0x100001))
    image = put(image, TABLE_CLUSTERS, bytes(4))
    after, _ = repaired(image)
    assert_repaired(image, after)
