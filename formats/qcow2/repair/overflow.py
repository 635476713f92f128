"""Clusters with more references than a refcount of the image's width can say.

With refcounts of one bit, two guest clusters cannot share a host cluster at all. Those beyond what
can be counted get copies: first L1 tables that snapshots share, then L2 tables, whose entries count
once for each L1 entry that names the table, then data. A copy is durable before anything names it;
that it is named may come later, with the refcounts: a repair that is cut short begins anew. What
copies may take is bounded; what is left then is reported.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.l2 import Entries, L2Check
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.repair.tables import table_bytes
from imgtool.formats.qcow2.schema import COMPRESSED, L1_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

#: Entries that are looked at together.
_STEP = 1 << 17
#: Of a cluster that is referred to too often: its number, and how often it is.
_BYTES_PER_CLUSTER = 32


def _excess(state: State) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clusters that are referred to too often, in order, and by how much."""
    most = (1 << state.geometry.refcount_bits) - 1
    if most >= 1 << 32:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    clusters, counts = state.tally.above(most)
    return clusters, counts.astype(np.int64) - most


def memory_to_split(state: State) -> int:
    """About how many bytes :class:`Split` takes for what is referred to too often."""
    return len(_excess(state)[0]) * _BYTES_PER_CLUSTER


class Split:
    """Gives references that cannot be counted clusters of their own."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._bits = state.geometry.cluster_bits
        self.fresh = Fresh(state)
        #: Clusters that are referred to too often, in order, and by how much.
        self._clusters, self._excess = _excess(state)

    @property
    def needed(self) -> bool:
        """Whether anything is referred to too often."""
        return len(self._clusters) > 0

    def _hit(self, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of those among ``clusters`` that are referred to too often."""
        if not len(self._clusters):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self._clusters, clusters), len(self._clusters) - 1)
        return np.flatnonzero(self._clusters[places] == clusters)

    def _may_leave(self, clusters: range, weight: int, taken: int) -> bool:
        """Whether something should leave the clusters, and go where it takes ``taken`` others."""
        first, last = np.searchsorted(self._clusters, (clusters.start, clusters.stop))
        excess = self._excess[first:last]
        if taken > self.fresh.room or not bool((excess > 0).any()):
            return False
        excess -= weight
        return True

    # L1 tables

    def snapshots(self, snapshots: list[Snapshot]) -> list[Snapshot]:
        """Copy L1 tables that too many snapshots share; return the snapshots as they should be."""
        most = self._state.geometry.max_refcount
        uses: Counter[tuple[int, int]] = Counter()
        places: dict[tuple[int, int, int], int] = {}
        found: list[Snapshot] = []
        for snapshot in snapshots:
            table = offset, entries = snapshot.l1_table_offset, snapshot.l1_size
            copy, uses[table] = uses[table] // most, uses[table] + 1
            key = (*table, copy)
            if entries and copy and key not in places:
                if self._state.geometry.clusters(entries * 8) > self.fresh.room:
                    return found + snapshots[len(found) :]
                words = self._state.read_table(offset, entries)
                places[key] = self.fresh.place(table_bytes(words))
            found.append(snapshot._replace(l1_table_offset=places.get(key, offset)))
        return found

    # L2 tables

    def tables(self, snapshots: list[Snapshot]) -> None:
        """Copy L2 tables that are named too often."""
        header = self._state.header
        self._split_l1(header.l1_table_offset, header.l1_size, 1)
        uses = Counter((one.l1_table_offset, one.l1_size) for one in snapshots)
        for (offset, entries), weight in uses.items():
            self._split_l1(offset, entries, weight)

    def _split_l1(self, offset: int, entries: int, weight: int) -> None:
        for start in range(0, entries, _STEP):
            place = offset + 8 * start
            words = self._state.read_table(place, min(_STEP, entries - start))
            offsets = words & np.uint64(L1_OFFSET_MASK)
            # An entry that names no table has nothing to do with cluster 0.
            named = np.flatnonzero(offsets)
            clusters = (offsets[named] >> np.uint64(self._bits)).astype(np.int64)
            changed = False
            for hit in self._hit(clusters).tolist():
                index, cluster = named[hit], int(clusters[hit])
                if self._may_leave(range(cluster, cluster + 1), weight, 1):
                    data = self._state.storage.read_at(cluster << self._bits, 1 << self._bits)
                    words[index] = self.fresh.place(data)
                    changed = True
            if changed:
                self._state.storage.flush()
                self._state.storage.write_at(place, table_bytes(words))

    # Data

    def data(self, tables: L1Check) -> None:
        """Copy data clusters, and compressed ones, of which there are too many references."""
        if self._state.header.has_data_file:
            return
        reader = L2Check(self._state)
        step = self._state.geometry.l2_entry_size // 8
        stored = (tables.offsets != 0) & self._state.hold_data(tables.offsets)
        offsets, weights = tables.offsets[stored].tolist(), tables.weights[stored].tolist()
        for offset, weight in zip(offsets, weights, strict=True):
            table = self._state.read_table(offset, self._state.geometry.cluster_size // 8)
            entries = reader.entries(table)
            words = entries.entry.copy()
            self._split_plain(entries, words, weight)
            self._split_packed(reader, entries, words, weight)
            if not np.array_equal(words, entries.entry):
                table[entries.position * step] = words
                self._state.storage.flush()
                self._state.storage.write_at(offset, table_bytes(table))

    def _split_plain(self, entries: Entries, words: Words, weight: int) -> None:
        places = np.flatnonzero(entries.mapped)
        clusters = (entries.host[places] >> np.uint64(self._bits)).astype(np.int64)
        for hit in self._hit(clusters).tolist():
            cluster = int(clusters[hit])
            if self._may_leave(range(cluster, cluster + 1), weight, 1):
                place = places[hit]
                data = self._state.storage.read_at(cluster << self._bits, 1 << self._bits)
                moved = np.uint64(self.fresh.place(data))
                words[place] = (words[place] & ~entries.host[place]) | moved

    def _split_packed(self, reader: L2Check, entries: Entries, words: Words, weight: int) -> None:
        places = np.flatnonzero(entries.compressed)
        if not len(places):
            return
        starts, ends = reader.packed_ranges(entries.entry[places])
        bits = np.uint64(self._bits)
        first = (starts >> bits).astype(np.int64)
        last = ((ends - np.uint64(1)) >> bits).astype(np.int64)
        hits = [self._hit(np.minimum(first + step, last)) for step in range(3)]
        for hit in np.unique(np.concatenate(hits)).tolist():
            start, length = int(starts[hit]), int(ends[hit] - starts[hit])
            # It keeps its place within a sector, which its length is counted from.
            inside = start % 512
            taken = self._state.geometry.clusters(inside + length)
            if self._may_leave(range(int(first[hit]), int(last[hit]) + 1), weight, taken):
                data = bytes(inside) + self._state.storage.read_at(start, length)
                place, shift = places[hit], np.uint64(62 - (self._bits - 8))
                sectors = (words[place] & ~np.uint64(COMPRESSED)) >> shift
                moved = np.uint64(self.fresh.place(data) + inside)
                words[place] = np.uint64(COMPRESSED) | (sectors << shift) | moved
