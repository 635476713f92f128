"""Which blocks of a buffer matter: not all zeros, or not the same as another's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Blocks = NDArray[np.bool_]


def nonzero_blocks(buffer: bytearray, length: int, block: int) -> Blocks:
    """For each ``block`` bytes of the first ``length``: whether any is not zero.

    ``block`` is a multiple of 8 and divides ``length``.
    """
    import numpy as np

    words = np.frombuffer(buffer, dtype=np.uint64, count=length // 8).reshape(-1, block // 8)
    found: Blocks = np.bitwise_or.reduce(words, axis=1) != 0
    return found


def differing_blocks(one: bytearray, other: bytearray, length: int, block: int) -> Blocks:
    """For each ``block`` bytes of the first ``length``: whether the two buffers differ there."""
    import numpy as np

    count = length // 8
    mine = np.frombuffer(one, dtype=np.uint64, count=count)
    theirs = np.frombuffer(other, dtype=np.uint64, count=count)
    found: Blocks = np.any((mine != theirs).reshape(-1, block // 8), axis=1)
    return found


def fill_gaps(wanted: Blocks, shortest: int) -> Blocks:
    """Count as wanted the gaps of fewer than ``shortest`` blocks between wanted ones."""
    if shortest > 1:
        import numpy as np

        for value, start, end in list(runs(wanted)):
            if not value and end - start < shortest and start > 0 and end < len(wanted):
                wanted[start:end] = np.bool_(True)
    return wanted


def coarsen(wanted: Blocks, factor: int) -> Blocks:
    """Join every ``factor`` blocks to one, which is wanted if any of them is."""
    import numpy as np

    if factor == 1:
        return wanted
    padded = np.pad(wanted, (0, -len(wanted) % factor))
    joined: Blocks = np.any(padded.reshape(-1, factor), axis=1)
    return joined


def runs(wanted: Blocks) -> Iterator[tuple[bool, int, int]]:
    """The runs of equal values, as ``(value, first, end)``."""
    import numpy as np

    if not len(wanted):
        return
    edges = np.flatnonzero(wanted[1:] != wanted[:-1]) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(wanted)]
    for start, end in zip(starts, ends, strict=True):
        yield bool(wanted[start]), start, end
