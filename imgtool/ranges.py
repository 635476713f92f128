"""Sets of bytes as sorted, disjoint ranges ``(start, end)``, which never touch each other."""

from __future__ import annotations

from collections.abc import Iterable

Ranges = list[tuple[int, int]]


def joined(ranges: Iterable[tuple[int, int]], nearer_than: int = 1) -> Ranges:
    """Join sorted ranges that overlap, or between which fewer than ``nearer_than`` bytes lie."""
    found: Ranges = []
    last = -1
    for start, end in ranges:
        if found and start - last < nearer_than:
            if end > last:
                found[-1] = (found[-1][0], end)
                last = end
        else:
            found.append((start, end))
            last = end
    return found


def coarsened(ranges: Ranges, unit: int) -> Ranges:
    """The units of ``unit`` bytes (a power of two) that are touched."""
    mask = unit - 1
    if all(not (start | end) & mask for start, end in ranges):
        return ranges
    return joined((start & ~mask, (end + mask) & ~mask) for start, end in ranges)


def common(some: Ranges, others: Ranges) -> Ranges:
    """What lies in both."""
    found: Ranges = []
    index = 0
    for start, end in some:
        while index < len(others) and others[index][1] <= start:
            index += 1
        place = index
        while place < len(others) and others[place][0] < end:
            found.append((max(start, others[place][0]), min(end, others[place][1])))
            place += 1
    return found


def without(some: Ranges, others: Ranges) -> Ranges:
    """What lies in ``some`` and not in ``others``."""
    found: Ranges = []
    index = 0
    for begin, end in some:
        start = begin
        while index < len(others) and others[index][1] <= start:
            index += 1
        place = index
        while place < len(others) and others[place][0] < end:
            if start < others[place][0]:
                found.append((start, others[place][0]))
            start = others[place][1]
            place += 1
        if start < end:
            found.append((start, end))
    return found
