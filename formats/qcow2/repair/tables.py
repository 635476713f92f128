"""L1 and L2 tables under repair: entries mended, and tables moved from where others lie.

A table is changed in place only if nothing else lies in its cluster. Otherwise a mended copy goes
behind the end of the file: what else refers to the cluster, a guest's data perhaps, keeps it as it
is. The order of writes: L2 tables that stay, copies of those that move, L1 tables that stay, copies
of those that move. Each of the first three is durable before the next begins: an entry that names
what is past the end of the file must be gone before anything else is put there.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.l2 import L2Check
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.check.tally import SparseTally
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.repair.entries import L2Repair, mend_l1
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.repair.header import switch_header
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.units import align_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

#: Entries of an L1 table that are looked at together.
_STEP = 1 << 17


class TableRepair:
    """Repairs the tables that ``tables`` has walked."""

    def __init__(self, state: State, tables: L1Check, snapshots: list[Snapshot]) -> None:
        self._state, self._storage = state, state.storage
        self._tables = tables
        self._snapshots = snapshots
        #: Whether each L1 table of a snapshot lies where anything else but that table lies, and
        #: where those that move go.
        uses = Counter(self._l1_of(snapshot) for snapshot in snapshots)
        self._crowded_l1 = {
            (offset, entries): self._shared(offset, entries * 8, count)
            for (offset, entries), count in uses.items()
        }
        self._moved: dict[tuple[int, int], int] = {}
        self.fresh = Fresh(state)
        self._l2 = L2Repair(state, self.fresh)
        #: Host offsets of L2 tables that move, in order, and where they go.
        self._from = np.empty(0, np.uint64)
        self._to = np.empty(0, np.uint64)

    @property
    def unreadable(self) -> int:
        """How many guest clusters could not be read, and are zeros now."""
        return self._l2.unreadable

    @property
    def _crowded(self) -> NDArray[np.bool_]:
        """Which of the L2 tables share their cluster with something that isn't that table."""
        clusters = self._own >> self._state.geometry.cluster_bits
        crowded: NDArray[np.bool_] = self._state.tally.of(clusters) > self._own_weights
        return crowded

    @property
    def _own_places(self) -> NDArray[np.bool_]:
        offsets, cluster_size = self._tables.offsets, self._state.geometry.cluster_size
        inside = (offsets > 0) & (offsets < self._state.file_size)
        possible: NDArray[np.bool_] = inside & (offsets % cluster_size == 0)
        return possible

    @property
    def _own(self) -> NDArray[np.int64]:
        """Host offsets of the L2 tables that can be."""
        return self._tables.offsets[self._own_places]

    @property
    def _own_weights(self) -> Words:
        return self._tables.weights[self._own_places]

    def misplaced(self) -> int:
        """How many tables lie where something else lies, or end past the end of the file."""
        return (
            int(np.count_nonzero(self._crowded))
            + int(self._active_crowded())
            + sum(self._crowded_l1.values())
            + int(self._cut_off())
        )

    def _cut_off(self) -> bool:
        end = int(self._own.max(initial=0)) + self._state.geometry.cluster_size
        return end > self._storage.size() and len(self._own) > 0

    def _active_crowded(self) -> bool:
        header = self._state.header
        return self._shared(header.l1_table_offset, header.l1_size * 8)

    def _shared(self, offset: int, length: int, uses: int = 1) -> bool:
        """Whether a range counted ``uses`` times has other references, or ends past the file."""
        if not length:
            return False
        if offset + length > self._state.file_size:
            return True
        geometry = self._state.geometry
        counts = self._state.tally.window(
            offset >> geometry.cluster_bits, geometry.clusters(length)
        )
        return bool((counts > uses).any())

    # Repairing

    def run(self) -> tuple[Header, list[Snapshot]]:
        """Repair all tables; return the header as it is now, and the snapshots as they should be.

        Writing the snapshot table is left to the caller.
        """
        crowded = self._crowded
        behind = self._named_behind(self._own[crowded])
        if self._cut_off():
            size = align_up(self._storage.size(), self._state.geometry.cluster_size)
            self._storage.truncate(size)
        self._mend_in_place(self._own[~crowded], self._own_weights[~crowded])
        self._storage.flush()
        self.fresh.avoid(behind)
        self._move(self._own[crowded], self._own_weights[crowded])
        self._storage.flush()
        moves = self._active_crowded()
        header = self._state.header
        if not moves:
            self._mend_l1_in_place(header.l1_table_offset, header.l1_size)
        for table, crowded_l1 in self._crowded_l1.items():
            if not crowded_l1:
                self._mend_l1_in_place(*table)
        self._storage.flush()
        if moves:
            header = self._move_active()
        return header, [self._move_snapshot(snapshot) for snapshot in self._snapshots]

    def _named_behind(self, crowded: NDArray[np.int64]) -> array[int]:
        """Clusters past the end of the file that are named by what is not mended where it lies.

        They read as zeros until the L1 tables name other L2 tables: nothing may lie there before.
        """
        bits, size = self._state.geometry.cluster_bits, self._state.file_size
        found = SparseTally(charge=self._state.charge)
        offsets = self._tables.offsets
        found.add(offsets[offsets >= size] >> bits)
        reader = L2Check(self._state)
        for offset in crowded.tolist():
            entries = reader.entries(self._read_l2(offset))
            starts, ends = reader.packed_ranges(entries.entry[entries.compressed])
            # Compressed data touches three clusters at most.
            middles = np.minimum(starts + np.uint64(1 << bits), ends - np.uint64(1))
            for hosts in (entries.host[entries.mapped], starts, middles, ends - np.uint64(1)):
                past = hosts[hosts >= np.uint64(size)]
                if len(past):
                    found.add((past >> np.uint64(bits)).astype(np.int64))
        return array("q", found.found()[0].tobytes())

    def _mend_in_place(self, offsets: NDArray[np.int64], weights: Words) -> None:
        stored = self._state.hold_data(offsets)
        pairs = zip(offsets[stored].tolist(), weights[stored].tolist(), strict=True)
        for offset, weight in pairs:
            mended = self._l2.mend(self._read_l2(offset), weight)
            if mended is not None:
                self._storage.write_at(offset, table_bytes(mended))

    def _move(self, offsets: NDArray[np.int64], weights: Words) -> None:
        places = []
        for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
            words = self._read_l2(offset)
            mended = self._l2.mend(words, weight)
            places.append(self.fresh.place(table_bytes(words if mended is None else mended)))
        self._from, self._to = offsets.astype(np.uint64), np.array(places, np.uint64)

    def _read_l2(self, offset: int) -> Words:
        return self._state.read_table(offset, self._state.geometry.cluster_size // 8)

    def _mend_l1(self, words: Words) -> Words:
        mended = mend_l1(self._state, words)
        if len(self._from):
            offsets = mended & np.uint64(L1_OFFSET_MASK)
            places = np.minimum(np.searchsorted(self._from, offsets), len(self._from) - 1)
            moves = self._from[places] == offsets
            mended[moves] = self._to[places[moves]]
        return mended

    def _move_active(self) -> Header:
        header = self._state.header
        words = np.zeros(header.l1_size, np.uint64)
        held = self._held(header.l1_table_offset, header.l1_size)
        words[:held] = self._mend_l1(self._state.read_table(header.l1_table_offset, held))
        offset = self.fresh.place(table_bytes(words))
        return switch_header(self._storage, header._replace(l1_table_offset=offset))

    def _held(self, offset: int, entries: int) -> int:
        """How many entries of a table the file has."""
        return max(0, min(entries, (self._state.file_size - offset) // 8))

    def _mend_l1_in_place(self, offset: int, entries: int) -> None:
        for start in range(0, entries, _STEP):
            place, count = offset + 8 * start, min(_STEP, entries - start)
            words = self._state.read_table(place, count)
            mended = self._mend_l1(words)
            if not np.array_equal(mended, words):
                self._storage.write_at(place, table_bytes(mended))

    def _l1_of(self, snapshot: Snapshot) -> tuple[int, int]:
        """Where a snapshot's L1 table lies, and how many of its entries can be read."""
        offset = snapshot.l1_table_offset
        return offset, 0 if self._tables.fault(snapshot) else self._held(offset, snapshot.l1_size)

    def _move_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot with its L1 table where it is mended; one without entries has none."""
        table = offset, entries = self._l1_of(snapshot)
        if not entries:
            return snapshot._replace(l1_table_offset=0, l1_size=0)
        if table not in self._moved:
            self._moved[table] = self._move_l1(table) if self._crowded_l1[table] else offset
        return snapshot._replace(l1_table_offset=self._moved[table], l1_size=entries)

    def _move_l1(self, table: tuple[int, int]) -> int:
        """Where a snapshot's table goes. One that is right may stay if there is no room."""
        offset, entries = table
        words = self._state.read_table(offset, entries)
        mended = self._mend_l1(words)
        right = np.array_equal(mended, words)
        if right and self._state.geometry.clusters(entries * 8) > self.fresh.room:
            return offset
        return self.fresh.place(table_bytes(mended))


def table_bytes(words: Words) -> bytes:
    """A table as it lies on disk."""
    return (words.byteswap() if sys.byteorder == "little" else words).tobytes()
