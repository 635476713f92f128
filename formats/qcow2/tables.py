"""L1 and L2 tables in memory: loaded when first needed, whole, and kept within a bound."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.bulk import any_set
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES, Geometry
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK
from imgtool.schema.fields import Table, parse
from imgtool.storage.base import Storage

#: Bytes of L2 tables that one open image keeps; 32 MiB map 256 GiB of 64 KiB clusters.
L2_CACHE_BYTES = 32 << 20
#: Tables that were found in holes one by one before all of them are looked for at once.
_MANY_HOLES = 1024
#: Tables without entries that are remembered, by host offset.
_MANY_BLANKS = 4096


def read_table(storage: Storage, offset: int, entries: int, what: str) -> array[int]:
    """Read ``entries`` 64-bit entries at ``offset``; all of them must lie inside the file."""
    data = storage.read_exact(offset, entries * 8, what)
    table: array[int] = parse(Table(entries), data, what, offset)
    return table


def read_l1(storage: Storage, offset: int, entries: int, geometry: Geometry) -> array[int]:
    """Read an L1 table, that of the active disk or of a snapshot, having checked its place.

    Raises :class:`CorruptImage`, and :class:`~imgtool.errors.OverBudget` where the table leaves no
    memory for the rest.
    """
    if entries * 8 > MAX_L1_BYTES:
        raise CorruptImage("The L1 table is too large", offset)
    if offset % geometry.cluster_size:
        raise CorruptImage("The L1 table is not aligned to a cluster", offset)
    storage.account.check(entries * 8, "The L1 table")
    return read_table(storage, offset, entries, "The L1 table")


class L2Tables:
    """The L2 tables of one disk, by L1 index. Safe from any number of threads.

    Memory for them is taken from the image's budget at once, here: no more than the disk can have,
    and no more than a quarter of what is left, so that the other images of a chain have some.
    """

    def __init__(self, storage: Storage, geometry: Geometry, l1: array[int]) -> None:
        self.l1 = l1
        self._storage = storage
        self._geometry = geometry
        self._capacity = 0
        self._tables: dict[int, array[int]] = {}
        self._pinned: dict[int, array[int]] = {}
        self._lock = threading.Lock()
        #: How many tables have been found to lie in holes of the file.
        self._holes = 0
        #: For each L1 entry, 0 if its table lies in a hole; None as long as few are known to.
        self._stored: bytearray | None = None
        self._stored_room = 0
        #: Host offsets of tables that have been read and map nothing.
        self._blanks: set[int] = set()
        #: Counts what may make a table that mapped nothing map something.
        self._changes = 0
        self._take_room()

    def _take_room(self) -> None:
        size, account = self._geometry.cluster_size, self._storage.account
        most = min(L2_CACHE_BYTES, len(self.l1) * size, account.room() // 4)
        wanted = max(2, most // size)
        if wanted > self._capacity:
            account.charge((wanted - self._capacity) * size, "The cache of L2 tables")
            self._capacity = wanted

    def get(self, l1_index: int) -> array[int] | None:
        """The L2 table for an L1 entry, or None where there is none."""
        table = self._pinned.get(l1_index) or self._tables.get(l1_index)
        if table is not None:
            return table
        # Loading under the lock keeps a slow reader from bringing back what has been replaced.
        with self._lock:
            table = self._pinned.get(l1_index) or self._tables.get(l1_index)
            if table is None:
                table = self._load(l1_index)
                if table is not None:
                    self._keep(l1_index, table)
            return table

    def find(self, l1_index: int, *, keep: bool = True) -> array[int] | None:
        """The same for readers, who need no table that maps nothing.

        A file of enormous length may name millions of tables that were never written, or one that
        is empty as often. What is read is kept for the next reader, or not.
        """
        table = self._pinned.get(l1_index) or self._tables.get(l1_index)
        if table is not None or self._maps_nothing(l1_index):
            return table
        changes = self._changes
        table = self.get(l1_index) if keep else self._load(l1_index)
        if table is not None and not any_set(table):
            with self._lock:
                if changes == self._changes and len(self._blanks) < _MANY_BLANKS:
                    self._blanks.add(self.l1[l1_index] & L1_OFFSET_MASK)
        return table

    def _maps_nothing(self, l1_index: int) -> bool:
        """Whether a table that is not in memory is known to be empty."""
        offset, size = self.l1[l1_index] & L1_OFFSET_MASK, self._geometry.cluster_size
        if offset in self._blanks:
            return True
        stored = self._stored
        if stored is not None:
            return not stored[l1_index]
        if offset % size or offset + size > self._storage.size():
            return False  # which is an error
        part = next(self._storage.ranges(offset, size))
        if part.length < size or part.is_data:
            return False
        self._holes += 1
        if self._holes >= _MANY_HOLES:
            self._find_holes()
        return True

    def _find_holes(self) -> None:
        """Look for all tables that lie in holes, if there is memory to remember them."""
        from imgtool.formats.qcow2.stored import stored_tables

        with self._lock:
            if self._stored is not None:
                return
            account, wanted = self._storage.account, len(self.l1) - self._stored_room
            if wanted > account.room():
                return
            account.charge(max(0, wanted), "What is known of L2 tables")
            self._stored_room = max(self._stored_room, len(self.l1))
            stored = stored_tables(self._storage, self._geometry, self.l1)
            for l1_index in self._pinned:
                stored[l1_index] = 1
            self._stored = stored

    def next_mapped(self, l1_index: int, end: int) -> int:
        """The first L1 index from ``l1_index`` on, below ``end``, that has a table; else ``end``.

        The L1 table of a snapshot may be shorter than its disk: there are no tables behind it.
        Tables that are known to map nothing are passed over as well.
        """
        l1, pinned, blanks, stored = self.l1, self._pinned, self._blanks, self._stored
        stop = min(end, len(l1))
        while l1_index < stop:
            if stored is not None:
                l1_index = stored.find(1, l1_index, stop)
                if l1_index < 0:
                    break
            offset = l1[l1_index] & L1_OFFSET_MASK
            if (offset and offset not in blanks) or l1_index in pinned:
                return l1_index
            l1_index += 1
        return end

    def _load(self, l1_index: int) -> array[int] | None:
        offset = self.l1[l1_index] & L1_OFFSET_MASK
        if not offset:
            return None
        if offset % self._geometry.cluster_size:
            raise CorruptImage("An L2 table is not aligned to a cluster", offset)
        return read_table(self._storage, offset, self._geometry.cluster_size // 8, "An L2 table")

    def pin(self, l1_index: int, table: array[int]) -> None:
        """Keep ``table`` as the L2 table of an L1 entry until it is unpinned."""
        with self._lock:
            self._pinned[l1_index] = table
            self._tables.pop(l1_index, None)
            if self._stored is not None:
                self._stored[l1_index] = 1

    def use(self, l1: array[int]) -> None:
        """Take another L1 table, and read every L2 table anew. None may be pinned."""
        with self._lock:
            assert not self._pinned
            self.l1 = l1
            self._tables.clear()
            self._changes += 1
            self._blanks.clear()
            self._holes, self._stored = 0, None
            self._take_room()

    def unpin(self, l1_indexes: Iterable[int]) -> None:
        """Let tables that have been written be forgotten again."""
        with self._lock:
            self._changes += 1
            for l1_index in l1_indexes:
                self._blanks.discard(self.l1[l1_index] & L1_OFFSET_MASK)
                self._keep(l1_index, self._pinned.pop(l1_index))

    def _keep(self, l1_index: int, table: array[int]) -> None:
        while len(self._tables) >= self._capacity:
            # The oldest goes: dictionaries keep the order of insertion.
            del self._tables[next(iter(self._tables))]
        self._tables[l1_index] = table
