"""Ranges of the host file that may overlap, divided into parts that don't."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def overlaid(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Divide ``(offset, length)`` ranges into disjoint ``(offset, length, weight, first)``.

    ``weight`` says how many of the ranges cover a part, ``first`` whether the first of them does
    (1 or 0). Ranges that do not overlap are kept in their order; empty ones are left out.
    """
    kept = [(number, offset, length) for number, (offset, length) in enumerate(ranges)]
    kept = [(number, offset, length) for number, offset, length in kept if length > 0]
    by_place = sorted(kept, key=lambda entry: entry[1])
    if all(
        offset + length <= following
        for (_, offset, length), (_, following, _) in itertools.pairwise(by_place)
    ):
        return [(offset, length, 1, int(number == 0)) for number, offset, length in kept]

    edges: list[tuple[int, int, int]] = []
    for number, offset, length in kept:
        edges += [(offset, 1, int(number == 0)), (offset + length, -1, -int(number == 0))]
    edges.sort()
    parts: list[tuple[int, int, int, int]] = []
    start = weight = first = 0
    for place, change, first_change in edges:
        if weight and place > start:
            parts.append((start, place - start, weight, first))
        start, weight, first = place, weight + change, first + first_change
    return parts
