"""Ranges that overlap are divided so that each byte is read once and counted in full."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from imgtool.formats.qcow2.check.ranges import overlaid


def test_apart() -> None:
    assert overlaid([(50, 10), (0, 50), (60, 0), (70, 5)]) == [
        (50, 10, 1, 1),
        (0, 50, 1, 0),
        (70, 5, 1, 0),
    ]


def test_nothing() -> None:
    assert overlaid([]) == []
    assert overlaid([(5, 0), (7, -3)]) == []


@pytest.mark.parametrize("seed", range(50))
def test_every_byte_has_its_weight(seed: int) -> None:
    chance = random.Random(seed)
    ranges = [(chance.randrange(30), chance.randrange(-2, 12)) for _ in range(chance.randrange(9))]
    weights, firsts = [0] * 60, [0] * 60
    parts = overlaid(ranges)
    for offset, length, weight, first in parts:
        for place in range(offset, offset + length):
            weights[place] += weight
            firsts[place] += first
    for place in range(60):
        covering = [n for n, (o, length) in enumerate(ranges) if o <= place < o + length]
        assert weights[place] == len(covering)
        assert firsts[place] == int(0 in covering)
    ordered = sorted(parts)
    assert all(one[0] + one[1] <= other[0] for one, other in pairwise(ordered))
