"""What the refcount structures say, against what was counted.

Source: the specification's section "Host cluster management".
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.check.tally import COPIED_MARK
from imgtool.formats.qcow2.refcounts import unpack_block
from imgtool.formats.qcow2.schema import REFCOUNT_OFFSET_MASK
from imgtool.units import div_round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Refcounts = NDArray[np.unsignedinteger[Any]]

_RESERVED = 0x1FF
#: Bytes of refcount blocks that are kept for looking up single refcounts.
_KEPT_BYTES = 16 << 20
#: What is remembered of a block that the table names: its number, and whether it is repeated.
_BYTES_PER_BLOCK = 128

_WIDEN = (
    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean "
    "copy if the image cannot be opened for writing"
)


class RefcountCheck:
    """The refcount table and its blocks."""

    def __init__(self, state: State) -> None:
        self._state = state
        geometry, header = state.geometry, state.header
        self.per_block = geometry.refcount_block_entries
        # QEMU's counters have the width of the image's, and stay at the largest value.
        self.most = (1 << geometry.refcount_bits) - 1
        entries = header.refcount_table_clusters * geometry.cluster_size // 8
        self.table = state.read_table(header.refcount_table_offset, entries)
        state.charge(self.table.nbytes + int(np.count_nonzero(self.table)) * _BYTES_PER_BLOCK)
        self._kept: dict[int, Refcounts] = {}
        self._complained = False
        #: Of blocks that the table repeats: how many clusters they say are in use, and the last.
        self._leaks: dict[int, tuple[int, int]] = {}
        #: Whether some COPIED flag contradicts the refcounts, or may do so.
        self.copied_wrong = False

    # The blocks themselves

    def count_blocks(self) -> None:
        """Count the refcount blocks, and report entries of the table that can't be."""
        state = self._state
        geometry = state.geometry
        indexes = np.flatnonzero(self.table)
        entries = self.table[indexes]
        offsets = entries & np.uint64(REFCOUNT_OFFSET_MASK)
        clusters = (offsets >> np.uint64(geometry.cluster_bits)).astype(np.int64)
        reserved = (entries & np.uint64(_RESERVED)) != 0
        unaligned = (offsets & np.uint64(geometry.cluster_size - 1)) != 0
        good = ~reserved & ~unaligned & (clusters < self.clusters())
        counted = self._count_in_order(clusters[good])
        counts = np.zeros(len(indexes), np.uint64)
        counts[good] = np.minimum(counted, np.uint64(self.most))
        wrong = np.flatnonzero(counts != 1)
        for done, place in enumerate(wrong.tolist()):
            index = int(indexes[place])
            if not state.findings.listening:
                state.findings.untold_corruptions(len(wrong) - done)
                return
            if reserved[place]:
                fault = f"table entry {index} has reserved bits set"
            elif unaligned[place]:
                fault = f"block {index} is not cluster aligned; refcount table entry corrupted"
            elif not good[place]:
                fault = f"block {index} is outside image"
            else:
                fault = f"block {index} refcount={counts[place]}"
            state.findings.corruption(f"ERROR refcount {fault}")

    def _count_in_order(self, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Count a reference to each cluster in turn; return what the count then is."""
        order = np.argsort(clusters, kind="stable")
        ordered = clusters[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        # How often a cluster has come up before, in the order of the table.
        before = np.arange(len(ordered)) - np.repeat(starts, np.diff(starts, append=len(ordered)))
        counts = np.zeros(len(ordered), np.uint64)
        counts[order] = self._state.tally.of(ordered) + before.astype(np.uint64) + np.uint64(1)
        self._state.tally.add(clusters)
        return counts

    def report_overflows(self) -> None:
        """Report clusters with more references than a refcount of this width can say."""
        for cluster, found in zip(*self._state.tally.above(self.most), strict=True):
            offset, count = int(cluster) << self._state.geometry.cluster_bits, int(found)
            findings = self._state.findings
            for done in range(count - self.most):
                if not findings.listening:
                    findings.untold_corruptions(count - self.most - done)
                    break
                findings.corruption(f"ERROR: overflow cluster offset={offset:#x}")
                findings.tell(_WIDEN)

    def clusters(self) -> int:
        """How many clusters are compared: those of the file, and one more if it is in use."""
        held = self._state.geometry.clusters(self._state.file_size)
        return held + int(bool(self._state.tally.window(held, 1).any()))

    # Comparing

    def compare(self, end: int | None = None) -> None:
        """Compare refcounts with what was counted, and find the end of the image.

        Of clusters from index ``end`` on nothing is said.
        """
        state, result = self._state, self._state.findings.result
        last, highest = self.clusters(), 0
        last = last if end is None else min(last, end)
        for number in self.numbers(last):
            first = number * self.per_block
            count = min(self.per_block, last - first)
            if count == self.per_block and self._is_repeated(number):
                highest = max(highest, self._count_repeated(number, first))
                continue
            counted = state.tally.window(first, count)
            offset = self.block_offset(number)
            if offset % state.geometry.cluster_size:
                self._report_unreadable(number, offset, first, count)
                continue
            refcounts = self.read(offset)[:count]
            if not np.array_equal(refcounts, counted):
                self._report_differences(first, refcounts, counted)
            if refcounts[-1] or counted[-1]:
                highest = first + count - 1
            elif (used := np.flatnonzero((refcounts != 0) | (counted != 0))).size:
                highest = first + int(used[-1])
            self._check_marks(first, refcounts)
        result.image_end_offset = (highest + 1) * state.geometry.cluster_size

    def numbers(self, clusters: int) -> list[int]:
        """The numbers of all blocks that exist, or would have to, within ``clusters``."""
        blocks = div_round_up(clusters, self.per_block)
        there = np.flatnonzero(self.table[:blocks])
        if len(there) < blocks:
            touched = self._state.tally.touched(self.per_block)
            # A repair adds clusters behind those that it found.
            there = np.union1d(there, touched[touched < blocks])
        numbers: list[int] = there.tolist()
        return numbers

    def _is_repeated(self, number: int) -> bool:
        """Whether the table names a block again, and nothing refers to what it counts here.

        A table may name one block a million times, for clusters that the file only claims to have.
        """
        if self._state.findings.listening or number >= len(self.table):
            return False
        return int(self.table[number]) in self._repeated and number not in self._touched

    @cached_property
    def _repeated(self) -> set[int]:
        entries, counts = np.unique(self.table, return_counts=True)
        return {
            entry
            for entry in entries[counts > 1].tolist()
            if entry and not (entry & REFCOUNT_OFFSET_MASK) % self._state.geometry.cluster_size
        }

    @cached_property
    def _touched(self) -> set[int]:
        return set(self._state.tally.touched(self.per_block).tolist())

    def _count_repeated(self, number: int, first: int) -> int:
        """Count what a repeated block leaks; return the last cluster that it says is in use."""
        offset = self.block_offset(number)
        if offset not in self._leaks:
            used = np.flatnonzero(self.read(offset))
            self._leaks[offset] = (len(used), int(used[-1]) if len(used) else -first)
        leaks, last = self._leaks[offset]
        self._state.findings.untold_leaks(leaks)
        return first + last

    def block_offset(self, number: int) -> int:
        return int(self.table[number]) & REFCOUNT_OFFSET_MASK if number < len(self.table) else 0

    def read(self, offset: int) -> Refcounts:
        """The refcounts of a block; all zero if there is none, or past the end of the file."""
        if not offset or offset >= self._state.file_size:
            return np.zeros(self.per_block, np.uint8)
        self._state.storage.account.spend(1 + (self._state.geometry.cluster_size >> 10))
        data = self._state.storage.read_at(offset, self._state.geometry.cluster_size)
        return unpack_block(data, self._state.geometry.refcount_order)

    def _report_unreadable(self, number: int, offset: int, first: int, count: int) -> None:
        findings = self._state.findings
        if not self._complained:
            self._complained = True
            index = hex(number) if number else "0"
            findings.tell(
                f"qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: "
                f"{index}); further non-fatal corruption events will be suppressed"
            )
        for cluster in range(first, first + count):
            if not findings.listening:
                findings.untold_failures(first + count - cluster)
                break
            findings.failure(f"Can't get refcount for cluster {cluster}: Input/output error")

    def _report_differences(self, first: int, refcounts: Refcounts, counted: Refcounts) -> None:
        findings = self._state.findings
        counted = np.minimum(counted.astype(np.uint64), np.uint64(self.most))
        refcounts = refcounts.astype(np.uint64)
        for index in np.flatnonzero(refcounts != counted).tolist():
            if not findings.listening:
                lost = int(np.count_nonzero(refcounts[index:] > counted[index:]))
                wrong = int(np.count_nonzero(refcounts[index:] < counted[index:]))
                findings.untold_leaks(lost)
                findings.untold_corruptions(wrong)
                break
            refcount, reference = int(refcounts[index]), int(counted[index])
            words = f"cluster {first + index} refcount={refcount} reference={reference}"
            if refcount > reference:
                findings.leak(f"Leaked {words}")
            else:
                findings.corruption(f"ERROR {words}")

    def _check_marks(self, first: int, refcounts: Refcounts) -> None:
        marks = self._state.tally.marks(first, len(refcounts))
        if marks is None:
            self.copied_wrong = True
        elif not self.copied_wrong:
            # Where the refcount is one, UNCOPIED_MARK is wrong; elsewhere COPIED_MARK is.
            one = (refcounts == 1).view(np.uint8)
            self.copied_wrong = bool((marks & (COPIED_MARK + one)).any())

    # Looking up

    def look_up(self, clusters: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The refcounts of some clusters, and for which of them there is one to be had."""
        order = np.argsort(clusters, kind="stable")
        numbers = clusters[order] // self.per_block
        found = np.zeros(len(clusters), np.uint64)
        known = np.ones(len(clusters), np.bool_)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for chosen in np.split(order, starts[1:]) if len(order) else ():
            offset = self.block_offset(int(clusters[chosen[0]]) // self.per_block)
            if offset % self._state.geometry.cluster_size:
                known[chosen] = False
            elif offset:
                found[chosen] = self._keep(offset)[clusters[chosen] % self.per_block]
        return found, known

    def _keep(self, offset: int) -> Refcounts:
        block = self._kept.get(offset)
        if block is None:
            block = self._kept[offset] = self.read(offset)
            while len(self._kept) > 1 and len(self._kept) * block.nbytes > _KEPT_BYTES:
                del self._kept[next(iter(self._kept))]
        return block
