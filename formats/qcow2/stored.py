"""What the host stores of an image's file: in its holes there are zeros, which nobody need read.

A file of enormous length may have millions of L2 tables that were never written. Asking the host
about each of them, let alone reading it, takes minutes; its ranges of data are few.
"""

from __future__ import annotations

import itertools
from array import array
from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Ranges of data that are told apart, for each of which the host has stored something.
_MOST_RANGES = 1 << 20
_NOWHERE = 1 << 62
#: Entries that are looked at together.
_STEP = 1 << 17


class StoredRanges:
    """The ranges of a file that are not holes, for asking about many places at once."""

    def __init__(self, storage: Storage) -> None:
        starts, ends = array("q"), array("q")
        # Its neighbours are holes, so this many ranges hold half as many of data.
        found = storage.ranges(0, storage.size())
        for part in itertools.islice(found, 2 * _MOST_RANGES):
            if part.is_data:
                starts.append(part.offset)
                ends.append(part.offset + part.length)
        if next(found, None) is not None:
            ends[-1] = _NOWHERE
        starts.append(_NOWHERE)
        self._starts = np.frombuffer(starts, np.int64)
        self._ends = np.frombuffer(ends, np.int64)

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return self._starts.nbytes + self._ends.nbytes

    def reach(self, offsets: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
        """In which of the ranges of ``length`` bytes at ``offsets`` anything may be stored."""
        places = np.searchsorted(self._ends, offsets, side="right")
        reached: NDArray[np.bool_] = self._starts[places] < offsets + length
        return reached


def stored_tables(storage: Storage, geometry: Geometry, l1: array[int]) -> bytearray:
    """For each L1 entry 1 if its L2 table may hold anything but zeros, else 0.

    A table that cannot be where it is said to be counts as stored: who reads it, is told so.
    """
    stored, size, file_size = StoredRanges(storage), geometry.cluster_size, storage.size()
    flags = bytearray(len(l1))
    found, words = np.frombuffer(flags, np.bool_), np.frombuffer(l1, np.uint64)
    for start in range(0, len(l1), _STEP):
        part = slice(start, start + _STEP)
        offsets = (words[part] & np.uint64(L1_OFFSET_MASK)).astype(np.int64)
        wrong = ((offsets & (size - 1)) != 0) | (offsets + size > file_size)
        found[part] = (offsets != 0) & (wrong | stored.reach(offsets, size))
    return flags
