"""L1 and L2 tables in memory: loaded when first needed, whole, and kept within a bound."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES, Geometry
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK
from imgtool.schema.fields import Table, parse
from imgtool.storage.base import Storage

#: Bytes of L2 tables that one open image keeps; 32 MiB map 256 GiB of 64 KiB clusters.
L2_CACHE_BYTES = 32 << 20


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
        """The same for readers, who need no table that was never written and maps nothing.

        A file of enormous length may name millions of those. What is read is kept for the next
        reader, or not.
        """
        table = self._pinned.get(l1_index) or self._tables.get(l1_index)
        if table is None and not self._in_hole(l1_index):
            table = self.get(l1_index) if keep else self._load(l1_index)
        return table

    def _in_hole(self, l1_index: int) -> bool:
        offset, size = self.l1[l1_index] & L1_OFFSET_MASK, self._geometry.cluster_size
        if offset % size or offset + size > self._storage.size():
            return False  # which is an error
        part = next(self._storage.ranges(offset, size))
        return part.length == size and not part.is_data

    def next_mapped(self, l1_index: int, end: int) -> int:
        """The first L1 index from ``l1_index`` on, below ``end``, that has a table; else ``end``.

        The L1 table of a snapshot may be shorter than its disk: there are no tables behind it.
        """
        l1, pinned = self.l1, self._pinned
        stop = min(end, len(l1))
        while l1_index < stop:
            if l1[l1_index] & L1_OFFSET_MASK or l1_index in pinned:
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

    def use(self, l1: array[int]) -> None:
        """Take another L1 table, and read every L2 table anew. None may be pinned."""
        with self._lock:
            assert not self._pinned
            self.l1 = l1
            self._tables.clear()
            self._take_room()

    def unpin(self, l1_indexes: Iterable[int]) -> None:
        """Let tables that have been written be forgotten again."""
        with self._lock:
            for l1_index in l1_indexes:
                self._keep(l1_index, self._pinned.pop(l1_index))

    def _keep(self, l1_index: int, table: array[int]) -> None:
        while len(self._tables) >= self._capacity:
            # The oldest goes: dictionaries keep the order of insertion.
            del self._tables[next(iter(self._tables))]
        self._tables[l1_index] = table
