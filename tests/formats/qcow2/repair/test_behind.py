"""Repair puts nothing where an entry that is still believed points past the end of the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

import imgtool
from imgtool.formats.qcow2.repair.fresh import Fresh
from tests.kit.qcow2 import COMPRESSED, COPIED, ImageBuilder

CLUSTER = 512
BITS = 9
ENTRIES = CLUSTER // 8


@pytest.mark.parametrize("sectors", [1, 2])
@pytest.mark.parametrize("inside", [0, 100])
def test_compressed_entries_of_a_table_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sectors: int, inside: int
) -> None:
    builder = ImageBuilder(2 * ENTRIES * CLUSTER, cluster_bits=BITS)
    builder.compressed(0)
    builder.data(ENTRIES)
    image = bytearray(builder.build())
    first, second = builder.places["l2-0"][0], builder.places["l2-1"][0]
    # Guest's data lies upon the table, so the table moves, and its old copy is read until then.
    struct.pack_into(">Q", image, second, COPIED | first)
    behind = -(-len(image) // CLUSTER) + 2
    place = behind * CLUSTER + inside
    struct.pack_into(">Q", image, first, COMPRESSED | sectors - 1 << 62 - (BITS - 8) | place)
    path = tmp_path / "disk.qcow2"
    path.write_bytes(image)
    avoided: list[int] = []
    taken: list[int] = []
    avoid, take = Fresh.avoid, Fresh.take

    def watched_avoid(fresh: Fresh, clusters: Sequence[int]) -> None:
        avoided.extend(clusters)
        avoid(fresh, clusters)

    def watched_take(fresh: Fresh, clusters: int) -> int:
        start = take(fresh, clusters)
        if avoided:
            taken.extend(range(start, start + clusters))
        return start

    monkeypatch.setattr(Fresh, "avoid", watched_avoid)
    monkeypatch.setattr(Fresh, "take", watched_take)
    imgtool.check(path, repair="all")
    last = (place // 512 * 512 + sectors * 512 - 1) // CLUSTER
    assert avoided == list(range(behind, last + 1))
    assert taken
    assert not set(taken) & set(avoided)
    assert imgtool.check(path).clean
