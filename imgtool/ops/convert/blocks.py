"""Which blocks of a buffer matter: not all zeros, or not the same as another's.

Memory is compared with memory, which ends at the first byte that tells: a block with data costs
next to nothing, and numpy would look at every byte of it.
"""

from __future__ import annotations

from imgtool.ranges import Ranges, joined, without

_WORD = 8
_ZERO_WORD = bytes(_WORD)
_ZEROS = bytes(1 << 20)

Buffer = bytes | bytearray


def nonzero_ranges(buffer: bytearray, length: int, block: int) -> Ranges:
    """The blocks of ``block`` bytes in the first ``length`` that are not all zeros.

    ``block`` is a multiple of 8 and divides ``length``.
    """
    view = memoryview(buffer)
    # A word of each block: only where that is zero is the block worth a look.
    sample = view[:length].cast("Q")[:: block // _WORD].tobytes()
    zeros: Ranges = []
    place = sample.find(_ZERO_WORD)
    while place >= 0:
        if place % _WORD:
            place += _WORD - place % _WORD
        else:
            first = place // _WORD * block
            while sample.startswith(_ZERO_WORD, place):
                place += _WORD
            _add_zeros(zeros, view, first, place // _WORD * block, block)
        place = sample.find(_ZERO_WORD, place)
    return without([(0, length)], zeros) if length else []


def _add_zeros(zeros: Ranges, view: memoryview, start: int, end: int, block: int) -> None:
    """Add to ``zeros`` the blocks between ``start`` and ``end`` that are all zeros."""
    if _is_zero(view[start:end]):
        zeros.append((start, end))
        return
    if end - start > block:
        found = [
            (here, here + block)
            for here in range(start, end, block)
            if _ZEROS.startswith(view[here : here + block])
        ]
        zeros += joined(found)


def _is_zero(view: memoryview) -> bool:
    return all(
        _ZEROS.startswith(view[start : start + len(_ZEROS)])
        for start in range(0, len(view), len(_ZEROS))
    )


def differing_ranges(one: bytearray, other: bytearray, length: int, block: int) -> Ranges:
    """The blocks of ``block`` bytes in the first ``length`` in which the two buffers differ.

    ``block`` divides ``length``.
    """
    found: Ranges = []
    _compare(found, one, memoryview(other), 0, length, block)
    return joined(found)


def _compare(
    found: Ranges, one: bytearray, other: memoryview, start: int, end: int, block: int
) -> None:
    if one.startswith(other[start:end], start):
        return
    if end - start <= block:
        found.append((start, end))
        return
    middle = start + (end - start) // block // 2 * block
    _compare(found, one, other, start, middle, block)
    _compare(found, one, other, middle, end, block)
