"""The two ways of reading L2 entries, in a loop and in bulk, see the same."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable

import pytest

from imgtool.errors import CorruptImage
from imgtool.extent import Extent, Kind, coalesce
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.l2 import L2Reader
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import without_places
from tests.kit.qcow2 import COMPRESSED, COPIED, ZERO

BITS = 14
SIZE = 1 << BITS
ALL = (1 << 32) - 1


def random_host(chance: random.Random) -> int:
    host = chance.choice((0, 0, chance.randrange(1, 1 << 20) << BITS))
    return host + (512 if chance.random() < 0.01 else 0)


def next_entry(chance: random.Random, before: int | None, zero: int) -> int:
    if before is not None and chance.random() < 0.6:
        runs_on = before & ~COPIED & ~ZERO and not before & COMPRESSED
        return before + SIZE if runs_on else before
    flags = chance.choice((0, COPIED)) | chance.choice((0, 0, zero))
    return random_host(chance) | flags | (COMPRESSED if chance.random() < 0.1 else 0)


def seen(extents: Iterable[Extent]) -> list[Extent] | None:
    try:
        return list(coalesce(extents))
    except CorruptImage:
        return None


@pytest.mark.parametrize("seed", range(20))
def test_loop_and_bulk(seed: int) -> None:
    chance = random.Random(seed)
    storage = MemoryStorage()
    for _ in range(40):
        version, external = chance.choice((2, 3, 3)), chance.random() < 0.3
        reader = L2Reader(Geometry(BITS), storage, storage, version, external)
        table = array("Q")
        for _ in range(chance.randrange(1, 60)):
            before = table[-1] if table else None
            table.append(next_entry(chance, before, ZERO if version == 3 else 0))
        first = chance.randrange(len(table))
        count = chance.randrange(1, len(table) - first + 1)
        for whole in (False, True):
            part = (table, first, count, first << BITS, whole)
            one_by_one = seen(reader._standard(*part))
            assert one_by_one == seen(reader._bulk(*part, places=True))
        kinds = seen(reader._bulk(*part, places=False))
        assert (kinds is None) == (one_by_one is None)
        if kinds is not None and one_by_one is not None:
            assert without_places(kinds) == without_places(one_by_one)


def plain(entry: int, bitmap: int, index: int, storage: MemoryStorage) -> list[Extent]:
    """What an extended entry means, subcluster by subcluster."""
    host, step = entry & 0x00FFFFFFFFFFFE00, SIZE // 32
    found = []
    for number in range(32):
        kind = Kind.ZERO if bitmap >> 32 + number & 1 else Kind.UNALLOCATED
        kind = Kind.DATA if bitmap >> number & 1 else kind
        where = (storage, host + number * step) if host else (None, None)
        found.append(Extent((index << BITS) + number * step, step, kind, *where))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_extended(seed: int) -> None:
    chance = random.Random(seed)
    storage = MemoryStorage()
    reader = L2Reader(Geometry(BITS, 4, True), storage, storage, 3, False)
    table, expected = array("Q"), []
    for index in range(100):
        if table and chance.random() < 0.6:
            entry, bitmap = table[-2], table[-1]
            entry += SIZE if entry & ~COPIED else 0
        else:
            entry = chance.choice((0, chance.randrange(1, 1 << 20) << BITS))
            zeros = chance.choice((0, ALL, chance.getrandbits(32)))
            data = chance.choice((0, ALL, chance.getrandbits(32))) & ~zeros if entry else 0
            bitmap = zeros << 32 | data
        table.extend((entry, bitmap))
        expected += plain(entry, bitmap, index, storage)
    for first, count in ((0, 100), (0, 1), (37, 20), (99, 1)):
        chosen = expected[32 * first : 32 * (first + count)]
        found = seen(reader.extents(table, first, count, first << BITS))
        assert found == seen(chosen)


@pytest.mark.parametrize(
    ("entry", "bitmap"),
    [(SIZE, ALL << 32 | 1), (0, 1), (0, ALL), (SIZE + 512, ALL), (SIZE + 512, 1)],
)
def test_extended_damage(entry: int, bitmap: int) -> None:
    storage = MemoryStorage()
    reader = L2Reader(Geometry(BITS, 4, True), storage, storage, 3, False)
    with pytest.raises(CorruptImage):
        list(reader.extents(array("Q", (2 * SIZE, ALL, entry, bitmap)), 0, 2, 0))
