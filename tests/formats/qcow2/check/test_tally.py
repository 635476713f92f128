"""Both ways of counting agree with a plain dictionary."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from imgtool.formats.qcow2.check.tally import (
    COPIED_MARK,
    UNCOPIED_MARK,
    DenseTally,
    SparseTally,
    Tally,
    new_tally,
)

CLUSTERS = 1000


def compare(tally: Tally, truth: Counter[int], chance: random.Random) -> None:
    first = chance.randrange(CLUSTERS)
    count = chance.randrange(1, CLUSTERS - first + 1)
    expected = [truth[cluster] for cluster in range(first, first + count)]
    assert tally.window(first, count).tolist() == expected
    chosen = np.array([chance.randrange(CLUSTERS) for _ in range(20)])
    assert tally.of(chosen).tolist() == [truth[cluster] for cluster in chosen.tolist()]
    limit = chance.choice((0, 1, 5, 255, 65535))
    over = sorted((cluster, n) for cluster, n in truth.items() if n > limit)
    clusters, counts = tally.above(limit)
    assert list(zip(clusters.tolist(), counts.tolist(), strict=True)) == over
    unit = chance.choice((1, 7, 64, 2000))
    used = {cluster // unit for cluster, n in truth.items() if n}
    assert set(tally.touched(unit).tolist()) == used


@pytest.mark.parametrize("kind", [DenseTally, SparseTally])
@pytest.mark.parametrize("seed", range(8))
def test_like_a_dictionary(kind: type[DenseTally] | type[SparseTally], seed: int) -> None:
    chance = random.Random(seed)
    tally, truth = kind(CLUSTERS), Counter[int]()
    for _ in range(60):
        weight = chance.choice((1, 1, 2, 1000, 40_000, 1 << 40))
        if chance.random() < 0.5:
            first = chance.randrange(CLUSTERS)
            count = chance.randrange(1, CLUSTERS - first + 1)
            tally.add_run(first, count, weight)
            truth.update(dict.fromkeys(range(first, first + count), weight))
        else:
            chosen = [chance.randrange(CLUSTERS) for _ in range(chance.randrange(60))]
            tally.add(np.array(chosen, np.int64), weight)
            for cluster in chosen:
                truth[cluster] += weight
        if chance.random() < 0.3:
            compare(tally, truth, chance)
    compare(tally, truth, chance)


def test_counts_of_sixteen_bits_are_not_the_end() -> None:
    tally = DenseTally(4)
    for _ in range(3):
        tally.add_run(1, 2, 0xFFFF)
    tally.add(np.full(0x20000, 2), 1)
    assert tally.window(0, 4).tolist() == [0, 3 * 0xFFFF, 3 * 0xFFFF + 0x20000, 0]


def test_marks() -> None:
    tally = DenseTally(6)
    tally.mark_run(1, 2, COPIED_MARK)
    tally.mark(np.array([2, 2, 4]), UNCOPIED_MARK)
    marks = tally.marks(0, 6)
    assert marks is not None
    assert marks.tolist() == [0, 1, 3, 0, 2, 0]
    assert SparseTally(6).marks(0, 6) is None


def test_weights_of_their_own() -> None:
    tally = SparseTally()
    tally.add_counted(np.array([5, 9]), np.array([3, 4]))
    tally.add(np.array([9]))
    clusters, counts = tally.found()
    assert (clusters.tolist(), counts.tolist()) == ([5, 9], [3, 5])


def test_memory_goes_by_what_is_stored() -> None:
    assert isinstance(new_tally(1 << 20, 0), DenseTally)
    assert isinstance(new_tally(1 << 40, 1 << 20), SparseTally)
