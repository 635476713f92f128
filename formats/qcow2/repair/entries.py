"""What L1 and L2 entries that cannot be become.

The rule is that whatever could be read before reads the same afterwards. What could not be read
becomes zeros, never what a backing image has there: old data would pass for the disk's own.

- bits that mean nothing are cleared;
- past the end of the file everything reads as zeros already, and a table as one without entries;
- a data cluster that is not aligned, a compressed one past the end, or one in an external data
  file, cannot be read;
- a subcluster that is said to be both data and zeros becomes data: nobody could read it, and the
  data are still there.

Source: the specification's sections "Cluster mapping", "Standard Cluster Descriptor",
"Compressed Clusters Descriptor" and "Extended L2 Entries".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.l1 import RESERVED as L1_RESERVED
from imgtool.formats.qcow2.check.l2 import RESERVED as L2_RESERVED
from imgtool.formats.qcow2.check.l2 import Entries, L2Check
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.schema import COMPRESSED, COPIED, L1_OFFSET_MASK, ZERO_FLAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Words = NDArray[np.uint64]

_L1_OFFSET = np.uint64(L1_OFFSET_MASK)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_SECTOR = np.uint64(512)


def mend_l1(state: State, words: Words) -> Words:
    """L1 entries as they should be, but for their COPIED flags."""
    offsets = words & _L1_OFFSET
    unaligned = (offsets & np.uint64(state.geometry.cluster_size - 1)) != 0
    usable = (offsets != 0) & ~unaligned & (offsets < np.uint64(state.file_size))
    mended: Words = np.where(usable, words & ~np.uint64(L1_RESERVED), np.uint64(0))
    return mended


class L2Repair:
    """Mends L2 tables. ``unreadable`` counts the guest clusters that could not be read."""

    def __init__(self, state: State, fresh: Fresh) -> None:
        self._state, self._fresh = state, fresh
        self._l2 = L2Check(state)
        self._external = state.header.has_data_file
        self.unreadable = 0

    def mend(self, words: Words, weight: int) -> Words | None:
        """A table as it should be, but for its COPIED flags; None if it is so already.

        The table is referred to ``weight`` times.
        """
        entries = self._l2.entries(words)
        entry = entries.entry.copy()
        entry[~entries.compressed] &= ~np.uint64(L2_RESERVED)
        unaligned = (entries.host & np.uint64(self._state.geometry.cluster_size - 1)) != 0
        gone = entries.mapped & unaligned
        self.unreadable += int(np.count_nonzero(gone))
        if not self._external:
            gone |= entries.mapped & (entries.host >= np.uint64(self._state.file_size))
        if entries.compressed.any():
            lost = self._mend_packed(entries, entry)
            self.unreadable += int(np.count_nonzero(lost))
            gone |= lost
        if entries.bitmap is None:
            self._zero_clusters(entry, gone, weight)
        else:
            bitmap = _subclusters(entries, gone)
            entry[gone] = 0
        mended = words.copy()
        if entries.bitmap is None:
            mended[entries.position] = entry
        else:
            mended[0::2][entries.position] = entry
            mended[1::2][entries.position] = bitmap
        return None if np.array_equal(mended, words) else mended

    def _mend_packed(self, entries: Entries, entry: Words) -> Mask:
        """Mend compressed entries in place, and return which of them can't be read."""
        packed, state = entries.compressed, self._state
        entry[packed] &= ~np.uint64(COPIED)
        if self._external:
            return packed
        offsets, ends = self._l2.packed_ranges(entry)
        size = np.uint64(state.file_size)
        far = packed & (ends >= np.uint64(state.past))
        lost: Mask = far & (offsets >= size)
        # The range may claim more than the data take: as much as the file has is kept.
        cut = far & ~lost
        more = (size - (offsets[cut] & ~(_SECTOR - np.uint64(1)))) // _SECTOR - np.uint64(1)
        shift = np.uint64(62 - (state.geometry.cluster_bits - 8))
        entry[cut] = np.uint64(COMPRESSED) | (more << shift) | offsets[cut]
        return lost

    def _zero_clusters(self, entry: Words, gone: Mask, weight: int) -> None:
        """Let the entries in ``gone`` read as zeros, by what the image's version has for that."""
        if self._state.header.version >= 3:
            entry[gone] = ZERO_FLAG
            return
        entry[gone] = 0
        if self._state.header.backing_file is not None:
            places = np.flatnonzero(gone)
            while len(places):
                offset, count = self._fresh.zeros(len(places), weight)
                entry[places[:count]] = offset
                places = places[count:]


def _subclusters(entries: Entries, gone: Mask) -> Words:
    """The subcluster bitmaps as they should be; those in ``gone`` lose their host cluster."""
    assert entries.bitmap is not None
    allocated, zero = entries.bitmap & _LOW_HALF, entries.bitmap >> _HALF
    hosted = entries.mapped & ~gone
    bitmap: Words = np.where(
        hosted, allocated | ((zero & ~allocated) << _HALF), (allocated | zero) << _HALF
    )
    bitmap[entries.compressed] = 0
    bitmap[entries.compressed & gone] = _LOW_HALF << _HALF
    return bitmap
