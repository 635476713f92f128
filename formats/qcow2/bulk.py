"""Many table entries at once: with numpy, but not before that is worth importing it."""

from __future__ import annotations

import sys
from array import array

from imgtool.zeros import all_zero

#: Importing numpy takes as long as looping over so many entries, so it is put off that long.
_LOOPED_ENTRIES = 1_000_000

_looped = 0


def numpy_pays(count: int) -> bool:
    """Whether ``count`` more entries are worth numpy, given what has been done without it."""
    global _looped
    if "numpy" in sys.modules:
        return True
    _looped += count
    return _looped > _LOOPED_ENTRIES


def looped(count: int) -> None:
    """Say that more than was foreseen has been done without numpy: so many entries' worth."""
    global _looped
    _looped += count


def series(first: int, count: int, step: int) -> array[int]:
    """The entries ``first``, ``first + step``, and so on."""
    end = first + count * step
    if not numpy_pays(count):
        return array("Q", range(first, end, step))
    import numpy as np

    return array("Q", np.arange(first, end, step, dtype=np.uint64).tobytes())


def any_set(entries: array[int]) -> bool:
    """Whether any of the entries is not zero."""
    return bool(entries) and not all_zero(memoryview(entries).cast("B"))
