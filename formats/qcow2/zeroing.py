"""Making whole clusters zero: what becomes of their L2 entries, a table at a time.

Source: the specification's sections "Standard Cluster Descriptor" and "Extended L2 Entries".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.l2 import unaligned
from imgtool.formats.qcow2.refcounts import runs
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L2_OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Entries = NDArray[np.uint64]
    Choice = NDArray[np.bool_]

_ALL_ZERO = np.uint64(((1 << SUBCLUSTERS) - 1) << SUBCLUSTERS)


@dataclass(frozen=True)
class Zeroing:
    """How clusters of one disk are made zero.

    ``extended`` says that L2 entries are extended; ``flag`` that there is a zero flag, else
    clusters are only unmapped. ``unmap`` gives host clusters back, except in an ``external`` data
    file, where they keep their places. ``backed`` disks show something where nothing is mapped.
    """

    extended: bool
    flag: bool
    unmap: bool
    external: bool
    backed: bool

    def zero(self, table: array[int], first: int, count: int) -> Entries:
        """Make ``count`` clusters from entry ``first`` on zero; return entries to be let go of."""
        if self.extended:
            pairs = np.frombuffer(table, dtype=np.uint64)[2 * first : 2 * (first + count)]
            return self._extended(pairs[0::2], pairs[1::2])
        return self._standard(np.frombuffer(table, dtype=np.uint64)[first : first + count])

    def _standard(self, entries: Entries) -> Entries:
        kept = self._kept(entries)
        marked = entries != 0 if not self.backed else np.ones(len(entries), dtype=np.bool_)
        gone: Entries = entries[~kept & (entries != 0)]
        entries[~kept] = 0
        if self.flag:
            entries[marked] |= np.uint64(ZERO_FLAG)
        return gone

    def _extended(self, entries: Entries, bitmaps: Entries) -> Entries:
        kept = self._kept(entries)
        marked = (entries | bitmaps) != 0
        if self.backed:
            marked[:] = True
        gone: Entries = entries[~kept & (entries != 0)]
        entries[~kept] = 0
        bitmaps[marked] = _ALL_ZERO
        return gone

    def _kept(self, entries: Entries) -> Choice:
        """The entries whose host cluster stays with them."""
        if not self.flag or (self.unmap and not self.external):
            return np.zeros(len(entries), dtype=np.bool_)
        kept: Choice = entries & np.uint64(COPIED | COMPRESSED) == np.uint64(COPIED)
        return kept


def host_runs(entries: Entries, cluster_bits: int) -> Iterator[tuple[int, int]]:
    """The host clusters of uncompressed entries as runs: offset, and how many clusters.

    Raises :class:`CorruptImage` for offsets that are no multiple of the cluster size.
    """
    hosts = entries & np.uint64(L2_OFFSET_MASK)
    wrong = np.flatnonzero(hosts & np.uint64((1 << cluster_bits) - 1))
    if len(wrong):
        raise unaligned(int(hosts[wrong[0]]))
    indexes = hosts[hosts != 0] >> np.uint64(cluster_bits)
    for first, count in runs(indexes):
        yield first << cluster_bits, count
