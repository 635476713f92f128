"""L1 tables, of the active disk and of snapshots, and the order in which L2 tables are walked.

A table that is referred to many times, as snapshots do by the thousand, is walked once and counted
with its weight: what a check costs is bounded by what the file holds, however often it is named.

Source: the specification's sections "Cluster mapping" and "Snapshots".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imgtool.formats.qcow2.check.l2 import L2Check
from imgtool.formats.qcow2.check.ranges import overlaid
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.check.tally import COPIED_MARK, UNCOPIED_MARK, SparseTally
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESERVED = np.uint64(0x7F000000000001FF)
_OFFSET = np.uint64(L1_OFFSET_MASK)
_COPIED = np.uint64(COPIED)
#: What is read of tables that are not aligned, beyond what the file stores.
_UNALIGNED_BYTES = 16 << 20
#: Entries that are looked at together.
_STEP = 1 << 17


class L1Piece(NamedTuple):
    """A range of the host file that L1 tables occupy (bytes), and how often it is one of them."""

    offset: int
    length: int
    weight: int
    active: int


class TableBudget:
    """Bounds the reading of tables that are not aligned, which may overlap each other."""

    def __init__(self, state: State) -> None:
        self._cluster_size = state.geometry.cluster_size
        self._left = state.storage.allocated() + _UNALIGNED_BYTES

    def allows(self, offset: int) -> bool:
        """Whether the table at host ``offset`` is to be read."""
        if not offset % self._cluster_size:
            return True
        self._left -= self._cluster_size
        return self._left >= 0


class L1Check:
    """Walks all L1 tables and, through them, all L2 tables."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._l2 = L2Check(state)
        self._reading = TableBudget(state)

    @property
    def copied_unclear(self) -> bool:
        """Whether the COPIED flags need a closer look than the tally's marks allow."""
        return self._l2.copied_unclear

    @property
    def active_offsets(self) -> NDArray[np.int64]:
        """Host offsets of the L2 tables of the active disk, in order."""
        found: NDArray[np.int64] = self.offsets[(self._actives != 0) & (self.offsets != 0)]
        return found

    def walk(self, snapshots: list[Snapshot]) -> None:
        """Count everything that the active disk and the snapshots refer to."""
        header = self._state.header
        tables = [(header.l1_table_offset, header.l1_size * 8)]
        tables += [
            (snapshot.l1_table_offset, snapshot.l1_size * 8)
            for snapshot in snapshots
            if not self.fault(snapshot)
        ]
        held = self._state.file_size
        inside = [(offset, min(length, held - offset)) for offset, length in tables]
        pieces = [L1Piece(*piece) for piece in overlaid(inside)]
        self._weigh(pieces)
        self._state.count(*tables[0])
        active = [piece for piece in pieces if piece.active]
        for piece in active:
            self._walk_piece(piece)
        if header.has_data_file and snapshots:
            self._state.findings.corruption(
                f"ERROR {len(snapshots)} snapshots in image with data file"
            )
        for snapshot in snapshots:
            fault = self.fault(snapshot)
            if fault:
                self._state.findings.corruption(fault)
            else:
                self._state.count(snapshot.l1_table_offset, snapshot.l1_size * 8)
        for piece in pieces:
            if not piece.active:
                self._walk_piece(piece)

    def fault(self, snapshot: Snapshot) -> str:
        """What forbids following a snapshot's L1 table, or nothing."""
        named = f"ERROR snapshot {snapshot.id} ({snapshot.name})"
        if snapshot.l1_table_offset % self._state.geometry.cluster_size:
            return (
                f"{named} l1_offset={snapshot.l1_table_offset:#x}: L1 table is not cluster "
                "aligned; snapshot table entry corrupted"
            )
        if snapshot.l1_size * 8 > MAX_L1_BYTES:
            return (
                f"{named} l1_size={snapshot.l1_size:#x}: L1 table is too large; snapshot table "
                "entry corrupted"
            )
        return ""

    def _entries(self, piece: L1Piece) -> Iterator[NDArray[np.uint64]]:
        """The entries of a piece that are not zero, in steps."""
        count = piece.length // 8
        for start in range(0, count, _STEP):
            words = self._state.read_table(piece.offset + 8 * start, min(_STEP, count - start))
            words = words[words != 0]
            if len(words):
                yield words

    def _weigh(self, pieces: list[L1Piece]) -> None:
        """Sum up how often each L2 table is referred to, before any is walked."""
        everybody = SparseTally(charge=self._state.charge)
        active = SparseTally(charge=self._state.charge)
        for piece in pieces:
            for words in self._entries(piece):
                found, counts = np.unique(words & _OFFSET, return_counts=True)
                everybody.add_counted(found.astype(np.int64), counts * piece.weight)
                if piece.active:
                    active.add_counted(found.astype(np.int64), counts)
        self.offsets, self.weights = everybody.found()
        self._actives = np.zeros(len(self.offsets), np.uint64)
        offsets, times = active.found()
        self._actives[np.searchsorted(self.offsets, offsets)] = times
        self._walked = np.zeros(len(self.offsets), np.bool_)

    def _walk_piece(self, piece: L1Piece) -> None:
        state, tally = self._state, self._state.tally
        cluster_size = state.geometry.cluster_size
        for words in self._entries(piece):
            offsets = (words & _OFFSET).astype(np.int64)
            inside = offsets < state.file_size
            unaligned = (offsets & (cluster_size - 1)) != 0
            clusters = offsets >> state.geometry.cluster_bits
            tally.add(clusters[inside], piece.weight)
            if unaligned.any():
                tally.add(clusters[inside & unaligned] + 1, piece.weight)
            if piece.active:
                self._mark(words, offsets, clusters, inside)

            places = np.searchsorted(self.offsets, offsets)
            fresh = np.zeros(len(words), np.bool_)
            fresh[np.unique(places, return_index=True)[1]] = True
            fresh &= ~self._walked[places] & inside & state.hold_data(offsets)
            self._walked[places] = True
            faults = np.array([~inside, unaligned, (words & RESERVED) != 0])
            odd: NDArray[np.bool_]
            if state.findings.listening:
                odd = np.logical_or.reduce(faults)
            else:
                odd = np.zeros_like(fresh)
                state.findings.untold_corruptions(piece.weight * int(np.count_nonzero(faults)))
            for index in np.flatnonzero(fresh | odd).tolist():
                offset = int(offsets[index])
                if odd[index]:
                    self._report(int(words[index]), offset, piece.weight)
                if fresh[index] and self._reading.allows(offset):
                    place = places[index]
                    self._l2.walk(offset, int(self.weights[place]), int(self._actives[place]))

    def _mark(
        self,
        words: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        clusters: NDArray[np.int64],
        inside: NDArray[np.bool_],
    ) -> None:
        copied = (words & _COPIED) != 0
        named = offsets != 0
        self._state.tally.mark(clusters[named & inside & copied], COPIED_MARK)
        self._state.tally.mark(clusters[named & inside & ~copied], UNCOPIED_MARK)
        if not inside.all():
            self._l2.copied_unclear = True

    def _report(self, word: int, offset: int, weight: int) -> None:
        findings, cluster_size = self._state.findings, self._state.geometry.cluster_size
        if word & int(RESERVED):
            findings.corruption(f"ERROR found L1 entry with reserved bits set: {word:x}", weight)
        if offset >= self._state.file_size:
            self._state.past_end(offset, cluster_size, weight)
        if offset % cluster_size:
            findings.corruption(
                f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted",
                weight,
            )
