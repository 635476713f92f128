"""Which blocks of a buffer matter: not all zeros, or not the same as another's.

Memory is compared with memory, which ends at the first byte that tells: a block with data costs
next to nothing, and numpy would look at every byte of it.
"""

from __future__ import annotations

from collections.abc import Callable

from imgtool.ranges import Ranges, joined, without
from imgtool.zeros import all_zero

_WORD = 8
_ZERO_WORD = bytes(_WORD)


def nonzero_ranges(buffer: bytearray, length: int, block: int) -> Ranges:
    """The blocks of ``block`` bytes in the first ``length`` that are not all zeros.

    ``block`` is a multiple of 8 and divides ``length``.
    """
    view = memoryview(buffer)

    def zero(start: int, end: int) -> bool:
        return all_zero(view[start:end])

    # A word of each block: only where that is zero is the block worth a look.
    return _without_alike(_sample(view, length, block), length, block, zero)


def differing_ranges(one: bytearray, other: bytearray, length: int, block: int) -> Ranges:
    """The blocks of ``block`` bytes in the first ``length`` in which the two buffers differ.

    ``block`` is a multiple of 8 and divides ``length``.
    """
    mine, theirs = memoryview(one), memoryview(other)

    def same(start: int, end: int) -> bool:
        return one.startswith(theirs[start:end], start)

    if same(0, length):
        return []
    sample, others = _sample(mine, length, block), _sample(theirs, length, block)
    difference = int.from_bytes(sample, "little") ^ int.from_bytes(others, "little")
    return _without_alike(difference.to_bytes(len(sample), "little"), length, block, same)


def _sample(view: memoryview, length: int, block: int) -> bytes:
    """The first word of each block."""
    return view[:length].cast("Q")[:: block // _WORD].tobytes()


def _without_alike(
    sample: bytes, length: int, block: int, alike: Callable[[int, int], bool]
) -> Ranges:
    """All blocks but those whose word in ``sample`` is zero and that turn out to be ``alike``."""
    found: Ranges = []
    place = sample.find(_ZERO_WORD)
    while place >= 0:
        if place % _WORD:
            place += _WORD - place % _WORD
        else:
            first = place
            while sample.startswith(_ZERO_WORD, place):
                place += _WORD
            _add_alike(found, first // _WORD * block, place // _WORD * block, block, alike)
        place = sample.find(_ZERO_WORD, place)
    return without([(0, length)], found) if length else []


def _add_alike(
    found: Ranges, start: int, end: int, block: int, alike: Callable[[int, int], bool]
) -> None:
    if alike(start, end):
        found.append((start, end))
    elif end - start > block:
        pieces = ((here, here + block) for here in range(start, end, block))
        found += joined(piece for piece in pieces if alike(*piece))
