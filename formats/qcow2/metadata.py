"""The metadata of a writable image: what has changed, and the order in which it becomes durable.

The order, at each flush (each arrow is an fsync where there is something to wait for):

    data → refcount blocks → refcount table → header, if the table moved → L2 tables
    → L1 entries → clusters that these no longer reference are free

so that whatever is cut short, nothing on disk references a cluster that is not counted, or shows
data that has not arrived. What is lost at worst is space: a cluster counted and not referenced.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.header_switch import begin_header, write_header
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK
from imgtool.formats.qcow2.tables import L2Tables
from imgtool.gate import Gate
from imgtool.schema.fields import big_endian_bytes
from imgtool.storage.base import Storage

#: Changed tables and blocks that may wait in memory; past it they are flushed.
DIRTY_LIMIT = 16 << 20

#: About what it takes, in bytes, to remember one run of clusters that is to be freed.
_RUN_BYTES = 128
#: The same of the number of an L1 entry that has changed.
_NUMBER_BYTES = 128


class _Run(NamedTuple):
    """Clusters to be let go of, from a host offset on."""

    offset: int
    clusters: int
    discard: bool
    guests: bool


class Metadata:
    """L1, L2 and refcounts of one writable disk. The caller holds the device's write lock.

    A ``fresh`` image opens as nothing until its header is written, so nothing in it needs an order.
    Readers are inside ``gate`` while they look at clusters, so none is handed out again under them.
    """

    def __init__(
        self,
        storage: Storage,
        data: Storage,
        header: Header,
        tables: L2Tables,
        allocator: Allocator,
        gate: Gate,
        *,
        fresh: bool,
    ) -> None:
        self.header = header
        self.allocator = allocator
        self.unfinished = fresh
        #: Told when the header has changed.
        self.on_header: Callable[[Header], None] = lambda header: None
        self._storage = storage
        self._data = data
        self._tables = tables
        self._gate = gate
        self._dirty_l2: set[int] = set()
        self._dirty_l1: set[int] = set()
        self._to_free: list[_Run] = []

    def l2_table(self, l1_index: int) -> array[int]:
        """The L2 table for an L1 entry, for changing: made if there is none, copied if shared."""
        table = self._tables.get(l1_index)
        entry = self._tables.l1[l1_index]
        if table is None or not entry & COPIED:
            entries = self.header.geometry.cluster_size // 8
            table = array("Q", bytes(entries * 8)) if table is None else table[:]
            offset = self.allocator.allocate_table()
            self._tables.pin(l1_index, table)
            self._tables.l1[l1_index] = offset | COPIED
            self._dirty_l1.add(l1_index)
            if entry & L1_OFFSET_MASK:
                self.free_later(entry & L1_OFFSET_MASK, 1)
        else:
            self._tables.pin(l1_index, table)
        self._dirty_l2.add(l1_index)
        return table

    def set_l1_entry(self, l1_index: int, entry: int) -> None:
        """Change an L1 entry."""
        if self._tables.l1[l1_index] != entry:
            self._tables.l1[l1_index] = entry
            self._dirty_l1.add(l1_index)

    def free_later(self, offset: int, clusters: int, *, discard: bool = False) -> None:
        """Let go of host clusters with metadata once nothing on disk references them any more.

        With ``discard`` their host storage is given back as well.
        """
        self._later(_Run(offset, clusters, discard, guests=False))

    def let_go(self, offset: int, clusters: int, *, discard: bool = False) -> None:
        """Do the same with clusters of the guest's, or what a damaged image takes for such."""
        self._later(_Run(offset, clusters, discard, guests=True))

    def _later(self, run: _Run) -> None:
        if self._to_free:
            last = self._to_free[-1]
            end = last.offset + (last.clusters << self.header.geometry.cluster_bits)
            if (end, last.discard, last.guests) == (run.offset, run.discard, run.guests):
                self._to_free[-1] = last._replace(clusters=last.clusters + run.clusters)
                return
        self._to_free.append(run)

    @property
    def waiting(self) -> bool:
        """Whether something has changed that has not been written."""
        changed = self._dirty_l2 or self._dirty_l1 or self._to_free or self.allocator.dirty_bytes
        return bool(changed)

    def flush_if_crowded(self) -> None:
        """Flush if so much has changed that it should not wait in memory any longer."""
        waiting = len(self._dirty_l2) * self.header.geometry.cluster_size
        waiting += len(self._to_free) * _RUN_BYTES + len(self._dirty_l1) * _NUMBER_BYTES
        if waiting + self.allocator.dirty_bytes > DIRTY_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Write everything that has changed, in order; see the module's text."""
        if self._data is not self._storage and not self.unfinished:
            self._data.flush()
        self._barrier()
        self._write_refcounts()
        if self._write_l2():
            self._barrier()
        if self._write_l1():
            self._barrier()
        if self._to_free:
            with self._gate.drained():
                self._free()

    def switch_header(self, header: Header) -> None:
        """Write a header, behind all the metadata that it makes visible, and wait for it.

        Data in a file of their own are durable since the last :meth:`flush`.
        """
        if not self.unfinished:
            self._barrier()
            write_header(self._storage, header)
        self.header = header
        self.on_header(header)

    def finish(self) -> None:
        """Write the header of a new image, which makes it one."""
        if self._data is not self._storage:
            self._data.flush()
        begin_header(self._storage, self.header)
        self.unfinished = False

    def _barrier(self) -> None:
        """Wait for the image's own file, in which most often the data lie as well."""
        if not self.unfinished:
            self._storage.flush()

    def _write_refcounts(self) -> None:
        allocator = self.allocator
        if allocator.write_blocks():
            self._barrier()
        if allocator.write_table():
            self._barrier()
        if allocator.retired:
            geometry = self.header.geometry
            self.switch_header(
                self.header._replace(
                    refcount_table_offset=allocator.table_offset,
                    refcount_table_clusters=len(allocator.table) * 8 // geometry.cluster_size,
                )
            )
            # Only now: had the header not been written, it would have to be tried again.
            for offset, clusters in allocator.retired:
                self.free_later(offset, clusters)
            allocator.retired.clear()

    def _write_l2(self) -> bool:
        def place(l1_index: int) -> int:
            return self._tables.l1[l1_index] & L1_OFFSET_MASK

        for l1_index in sorted(self._dirty_l2, key=place):
            table = self._tables.get(l1_index)
            assert table is not None
            self._storage.write_at(place(l1_index), big_endian_bytes(table))
        wrote = bool(self._dirty_l2)
        self._tables.unpin(self._dirty_l2)
        self._dirty_l2.clear()
        return wrote

    def _write_l1(self) -> bool:
        """Write changed L1 entries, neighbours in one go."""
        for first, end in _runs(sorted(self._dirty_l1)):
            offset = self.header.l1_table_offset + 8 * first
            self._storage.write_at(offset, big_endian_bytes(self._tables.l1[first:end]))
        wrote = bool(self._dirty_l1)
        self._dirty_l1.clear()
        return wrote

    def _free(self) -> None:
        freed, self._to_free = self._to_free, []
        for run in freed:
            self.allocator.change(run.offset, run.clusters, -1, guests=run.guests)
            if run.discard:
                self.discard_freed()
            self.allocator.freed.clear()
        self.allocator.write_blocks()

    def discard_freed(self) -> None:
        """Give back the host storage of what has become free; nobody may still be reading it."""
        bits = self.header.geometry.cluster_bits
        freed, self.allocator.freed = self.allocator.freed, []
        for first, count in freed:
            self._storage.discard(first << bits, count << bits)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Join sorted numbers into ranges ``(first, end)``."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
