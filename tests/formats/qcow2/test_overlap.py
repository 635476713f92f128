"""The map of what holds metadata, held against a set of clusters."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.overlap import MetadataMap, Overlap, _join, _join_many
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK

BITS = 9

Join = Callable[
    [list[tuple[int, int]], Sequence[tuple["array[int]", int]], int],
    tuple["array[int]", "array[int]"],
]


def ranges(chance: random.Random) -> list[tuple[int, int]]:
    found = [(0, 1)]
    for _ in range(chance.randrange(8)):
        start = chance.randrange(200)
        found.append((start, start + chance.randrange(1, 30)))
    return found


def table(chance: random.Random) -> array[int]:
    clusters = [chance.randrange(200) for _ in range(chance.randrange(40))]
    return array("Q", [cluster << BITS | chance.choice((0, COPIED, 7)) for cluster in clusters])


@pytest.mark.parametrize("join", [_join, _join_many])
def test_joined(join: Join) -> None:
    for seed in range(200):
        chance = random.Random(seed)
        given, tables = ranges(chance), [table(chance), table(chance)]
        expected = {cluster for start, end in given for cluster in range(start, end)}
        expected |= {(entry & L1_OFFSET_MASK) >> BITS for one in tables for entry in one}
        starts, ends = join(given, [(one, L1_OFFSET_MASK) for one in tables], BITS)
        found = list(zip(starts, ends, strict=True))
        assert {cluster for start, end in found for cluster in range(start, end)} == expected
        for before, after in pairwise(found):
            assert before[1] <= after[0]


@pytest.mark.parametrize("seed", range(20))
def test_like_a_set(seed: int) -> None:
    chance = random.Random(seed)
    known = MetadataMap(Geometry(BITS))
    known._starts, known._ends = _join(ranges(chance), [(table(chance), L1_OFFSET_MASK)], BITS)
    expected = {
        cluster
        for start, end in zip(known._starts, known._ends, strict=True)
        for cluster in range(start, end)
    }
    for _ in range(300):
        first, count = chance.randrange(230), chance.randrange(1, 12)
        clusters = set(range(first, first + count))
        step = chance.randrange(4)
        if step == 0:
            known.forget(first << BITS, count)
            expected -= clusters
        elif step == 1 and chance.random() < 0.3:
            known.add(first << BITS, count)
            expected |= clusters
        elif step == 2:
            assert known.first_held(first, first + count) == min(clusters & expected, default=None)
            asked = np.array([chance.randrange(240) for _ in range(chance.randrange(9))], np.uint64)
            assert known.held_many(asked).tolist() == [one in expected for one in asked.tolist()]
            assert known.end == max(expected, default=-1) + 1
        elif clusters & expected:
            with pytest.raises(Overlap):
                known.check(first << BITS, count << BITS)
        else:
            known.check(first << BITS, count << BITS)


def test_a_range_without_bounds_takes_no_memory() -> None:
    starts, ends = _join([(0, 1), (1, 1 << 54), (3, 5)], [], BITS)
    assert (list(starts), list(ends)) == ([0], [1 << 54])
