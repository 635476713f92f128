"""Host clusters: which are free, which are taken, and the refcounts that say so.

Source: the specification's section "Host cluster management". Nothing here decides when something
is written: :mod:`imgtool.formats.qcow2.metadata` orders that.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from imgtool.errors import CorruptImage, ImageError
from imgtool.formats.qcow2.geometry import MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, Geometry
from imgtool.formats.qcow2.refcount_block import RefcountBlock
from imgtool.formats.qcow2.schema import REFCOUNT_OFFSET_MASK
from imgtool.schema.fields import big_endian_bytes
from imgtool.storage.base import Storage
from imgtool.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgtool.formats.qcow2.overlap import MetadataMap

#: Bytes of refcount blocks that are kept although they have not changed.
_KEPT_BYTES = 4 << 20


class Allocator:
    """Hands out host clusters, lowest first, and keeps their refcounts.

    ``table`` is the refcount table, at host offset ``table_offset``. Clusters below ``cursor`` are
    not searched; freeing lowers it. Refcount blocks are loaded when needed and stay while dirty.
    """

    def __init__(
        self, storage: Storage, geometry: Geometry, table: array[int], table_offset: int
    ) -> None:
        self.table = table
        self.table_offset = table_offset
        #: Host offset and clusters of tables that were replaced, until their owner has freed them.
        self.retired: list[tuple[int, int]] = []
        #: Runs of clusters, first and count, that have become free since their owner last looked.
        self.freed: list[tuple[int, int]] = []
        #: How many clusters have ever become free.
        self.frees = 0
        self._storage = storage
        self._geometry = geometry
        self._blocks: dict[int, RefcountBlock] = {}
        self._kept_blocks = max(4, _KEPT_BYTES // geometry.cluster_size)
        self._dirty_blocks: set[int] = set()
        self._dirty_table: set[int] = set()
        self._cursor = 0
        #: Where metadata lies, by the image's own word; None while there is nothing to run into.
        self.guard: MetadataMap | None = None

    @property
    def dirty_bytes(self) -> int:
        """What waits in memory to be written."""
        return len(self._dirty_blocks) * self._geometry.cluster_size

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Take a run of at most ``wanted`` free clusters; return its host offset and count."""
        per_block = self._geometry.refcount_block_entries
        while True:
            number, index = divmod(self._cursor, per_block)
            if number >= len(self.table):
                self._grow_table(number * per_block)
                continue
            block = self._block(number)
            if block is None:
                self._check_reach(self._cursor + 1)
                self._check_free(self._cursor, 1)
                self._make_block(number, self._cursor)[index] = 1
                self._cursor += 1
                continue
            index, count = block.free_run(index, wanted)
            if not count:
                self._cursor = (number + 1) * per_block
                continue
            first = number * per_block + index
            self._cursor = first + count
            self._check_reach(first + count)
            self._check_free(first, count)
            block.fill(index, count, 1)
            self._dirty_blocks.add(number)
            return first << self._geometry.cluster_bits, count

    def take_region(self, first: int, clusters: int, *, before: int = 0) -> int:
        """Take ``clusters`` free clusters that lie together, from index ``first`` on.

        Refcount blocks that are missing for them come first, so the region may begin a little
        later: its first index is returned. The ``before`` clusters in front of ``first`` are
        counted too. The caller knows that all of them are free and that the table reaches them.
        """
        per_block = self._geometry.refcount_block_entries
        missing: list[int] = []
        while True:
            end = first + len(missing) + clusters
            numbers = range((first - before) // per_block, div_round_up(end, per_block))
            needed = [number for number in numbers if not self.table[number]]
            if len(needed) == len(missing):
                break
            missing = needed
        self._check_reach(end)
        if self.guard is not None:
            self._check_free(first, end - first)
        self._note(first << self._geometry.cluster_bits, end - first)
        for position, number in enumerate(missing):
            self._make_block(number, first + position)
        index = first - before
        while index < end:
            number, slot = divmod(index, per_block)
            count = min(end - index, per_block - slot)
            block = self._block(number)
            assert block is not None
            block.fill(slot, count, 1)
            self._dirty_blocks.add(number)
            index += count
        return first + len(missing)

    def allocate_table(self) -> int:
        """Take one cluster for a table; return its host offset."""
        offset, _ = self.allocate(1)
        self._note(offset, 1)
        return offset

    def allocate_contiguous(self, wanted: int) -> int:
        """Take ``wanted`` clusters that lie together; return their host offset."""
        if wanted == 1:
            return self.allocate_table()
        per_block = self._geometry.refcount_block_entries
        first = self.end()
        room = wanted + div_round_up(wanted, per_block) + 2
        if len(self.table) * per_block < first + room:
            self._grow_table(first, room)
            first = self.end()
        return self.take_region(first, wanted) << self._geometry.cluster_bits

    def refcount(self, index: int) -> int:
        """The refcount of one host cluster, by index."""
        number, slot = divmod(index, self._geometry.refcount_block_entries)
        block = self._block(number) if number < len(self.table) else None
        return 0 if block is None else block[slot]

    def change(self, offset: int, count: int, by: int, *, guests: bool = False) -> None:
        """Add ``by`` to the refcounts of ``count`` clusters from host ``offset`` on.

        If the references that go were ``guests``', a cluster that holds metadata is not free
        because of it: for that it stays counted. If they were metadata's, it is none of the active
        disk's any more, though a snapshot may still have it.

        Raises :class:`CorruptImage` for refcounts that would fall below zero, and
        :class:`ImageError` for those that would not fit their width.
        """
        index = offset >> self._geometry.cluster_bits
        end = index + count
        per_block = self._geometry.refcount_block_entries
        if by < 0 and not guests and self.guard is not None:
            self.guard.forget(offset, count)
        while index < end:
            number, slot = divmod(index, per_block)
            block = self._block(number) if number < len(self.table) else None
            value = (0 if block is None else block[slot]) + by
            if block is None or value < 0:
                raise _uncounted(index << self._geometry.cluster_bits)
            if value > self._geometry.max_refcount:
                raise ImageError(f"A refcount exceeds {self._geometry.refcount_bits} bits")
            alike = block.alike(slot, min(end - index, per_block - slot))
            if guests and not value and self.guard is not None:
                held = self.guard.first_held(index, index + alike)
                if held == index:
                    index += 1
                    continue
                alike = alike if held is None else held - index
            block.fill(slot, alike, value)
            self._dirty_blocks.add(number)
            if not value:
                self._freed(index, alike)
            index += alike

    def change_many(self, indexes: NDArray[np.uint64], by: int, *, guests: bool = False) -> None:
        """Add ``by`` to the refcount of each cluster in ``indexes``, as often as it is in there.

        Nothing is changed if any of them would leave the range of refcounts; the errors, and
        ``guests``, are those of :meth:`change`.
        """
        import numpy as np

        from imgtool.formats.qcow2.refcounts import pack_block, runs, unpack_block

        if not len(indexes):
            return
        geometry = self._geometry
        clusters, times = np.unique(indexes, return_counts=True)
        numbers = clusters // np.uint64(geometry.refcount_block_entries)
        changed: list[tuple[int, bytes]] = []
        free: list[tuple[int, int]] = []
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] + np.uint64(1)))
        for start, end in zip(starts.tolist(), [*starts.tolist()[1:], len(clusters)], strict=True):
            number = int(numbers[start])
            block = self._block(number) if number < len(self.table) else None
            if block is None:
                raise _uncounted(int(clusters[start]) << geometry.cluster_bits)
            counts = unpack_block(block.data, geometry.refcount_order)
            slots = clusters[start:end] - np.uint64(number * geometry.refcount_block_entries)
            amounts = (times[start:end] * abs(by)).astype(np.uint64)
            old = counts[slots].astype(np.uint64)
            if by < 0 and bool(np.any(old < amounts)):
                wrong = int(clusters[start:end][old < amounts][0])
                raise _uncounted(wrong << geometry.cluster_bits)
            new = old - amounts if by < 0 else old + amounts
            if by > 0 and bool(np.any((old == 0) | (new > np.uint64(geometry.max_refcount)))):
                if bool(np.any(old == 0)):
                    raise _uncounted(int(clusters[start:end][old == 0][0]) << geometry.cluster_bits)
                raise ImageError(f"A refcount exceeds {geometry.refcount_bits} bits")
            if guests and self.guard is not None:
                gone = np.flatnonzero(new == 0)
                new[gone[self.guard.held_many(clusters[start:end][gone])]] = 1
            counts[slots] = new.astype(counts.dtype)
            changed.append((number, pack_block(counts, geometry.refcount_order)))
            if by < 0:
                free.extend(runs(clusters[start:end][new == 0]))
        for number, data in changed:
            block = self._block(number)
            assert block is not None
            block.data[:] = data
            self._dirty_blocks.add(number)
        for first, count in free:
            self._freed(first, count)

    def refcounts(self, indexes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The refcount of each cluster in ``indexes``."""
        import numpy as np

        from imgtool.formats.qcow2.refcounts import unpack_block

        per_block = self._geometry.refcount_block_entries
        found = np.zeros(len(indexes), dtype=np.uint64)
        numbers = indexes // np.uint64(per_block)
        for number in np.unique(numbers).tolist():
            block = self._block(number) if number < len(self.table) else None
            if block is not None:
                here = numbers == np.uint64(number)
                counts = unpack_block(block.data, self._geometry.refcount_order)
                found[here] = counts[indexes[here] - np.uint64(number * per_block)]
        return found

    def drop_empty_blocks(self) -> list[int]:
        """Take the refcount blocks out of the table that count nothing but themselves.

        Nothing may be waiting to be written. Returns the host offsets of those that another block
        counts: they are the caller's to free, once the table is durable.
        """
        from imgtool.formats.qcow2.refcounts import unpack_block

        per_block = self._geometry.refcount_block_entries
        elsewhere: list[int] = []
        for number in range(len(self.table)):
            block = self._block(number)
            if block is None:
                continue
            offset = self.table[number] & REFCOUNT_OFFSET_MASK
            index = offset >> self._geometry.cluster_bits
            counted = unpack_block(block.data, self._geometry.refcount_order).nonzero()[0].tolist()
            if counted == [index - number * per_block]:
                self._freed(index, 1)
            elif not counted:
                elsewhere.append(offset)
            else:
                self._trim()
                continue
            self.table[number] = 0
            self._dirty_table.add(number)
            del self._blocks[number]
        return elsewhere

    # Writing back, in the two steps that must not be swapped

    def write_blocks(self) -> bool:
        """Write the refcount blocks that have changed; return whether there were any."""
        for number in sorted(self._dirty_blocks):
            offset = self.table[number] & REFCOUNT_OFFSET_MASK
            self._storage.write_at(offset, self._blocks[number].data)
        wrote = bool(self._dirty_blocks)
        self._dirty_blocks.clear()
        self._trim()
        return wrote

    def write_table(self) -> bool:
        """Write the parts of the refcount table that have changed; return whether any had."""
        per_cluster = self._geometry.cluster_size // 8
        parts = sorted({number // per_cluster for number in self._dirty_table})
        for part in parts:
            entries = self.table[part * per_cluster : (part + 1) * per_cluster]
            self._storage.write_at(
                self.table_offset + (part << self._geometry.cluster_bits), big_endian_bytes(entries)
            )
        self._dirty_table.clear()
        return bool(parts)

    # Refcount blocks

    def _block(self, number: int) -> RefcountBlock | None:
        block = self._blocks.get(number)
        if block is not None:
            return block
        offset = self.table[number] & REFCOUNT_OFFSET_MASK
        if not offset:
            return None
        if offset & (self._geometry.cluster_size - 1):
            raise CorruptImage("A refcount block is not aligned to a cluster", offset)
        if len(self._blocks) >= 2 * self._kept_blocks:
            self._trim()
        data = self._storage.read_exact(offset, self._geometry.cluster_size, "A refcount block")
        block = self._blocks[number] = RefcountBlock(data, self._geometry.refcount_order)
        return block

    def _make_block(self, number: int, index: int) -> RefcountBlock:
        """Make the refcount block ``number``, all zeros, in host cluster ``index``."""
        data = bytearray(self._geometry.cluster_size)
        block = self._blocks[number] = RefcountBlock(data, self._geometry.refcount_order)
        self.table[number] = index << self._geometry.cluster_bits
        self._note(self.table[number], 1)
        self._dirty_blocks.add(number)
        self._dirty_table.add(number)
        return block

    def _grow_table(self, first: int, room: int = 0) -> None:
        """Put a larger refcount table at cluster index ``first``, from where on all is free.

        It reaches at least ``room`` clusters further.
        """
        per_block, per_cluster = (
            self._geometry.refcount_block_entries,
            self._geometry.cluster_size // 8,
        )
        number = div_round_up(first, per_block)
        # Half as much again. Of the clusters that an entry counts, one may be taken by its block
        # and less than one by the table itself.
        entries = max(number + number // 2 + per_cluster, div_round_up(first + room, per_block - 2))
        clusters = div_round_up(entries, per_cluster)
        clusters = min(clusters, MAX_REFCOUNT_TABLE_BYTES // self._geometry.cluster_size)
        grown = clusters * per_cluster - len(self.table)
        if grown <= 0 or clusters * per_cluster * (per_block - 2) < first + room:
            raise ImageError("The refcount table has reached its largest size: the image is full")
        old_clusters = len(self.table) // per_cluster
        self.table.extend([0] * grown)
        try:
            start = self.take_region(first, clusters)
        except BaseException:
            # The table on disk is as short as it was.
            self._shorten_table(old_clusters * per_cluster)
            raise
        self.retired.append((self.table_offset, old_clusters))
        self.table_offset = start << self._geometry.cluster_bits
        self._dirty_table.update(range(0, len(self.table), per_cluster))
        self._cursor = start + clusters

    def _shorten_table(self, entries: int) -> None:
        del self.table[entries:]
        for number in [number for number in self._blocks if number >= entries]:
            del self._blocks[number]
        self._dirty_blocks = {number for number in self._dirty_blocks if number < entries}
        self._dirty_table = {number for number in self._dirty_table if number < entries}

    def _freed(self, first: int, count: int) -> None:
        self._cursor = min(self._cursor, first)
        self.frees += count
        self.freed.append((first, count))
        if self.guard is not None:
            bits = self._geometry.cluster_bits
            self.guard.forget(first << bits, count)

    def _note(self, offset: int, clusters: int) -> None:
        if self.guard is not None:
            self.guard.add(offset, clusters)

    def end(self) -> int:
        """The index of the first cluster behind all that are counted."""
        per_block = self._geometry.refcount_block_entries
        for number in range(len(self.table) - 1, -1, -1):
            block = self._block(number)
            used = 0 if block is None else len(bytes(block.data).rstrip(b"\0"))
            if block is not None and used:
                return number * per_block + div_round_up(used * per_block, len(block.data))
        return 0

    def _check_free(self, first: int, count: int) -> None:
        """Raise :class:`CorruptImage` if clusters that are counted as free hold metadata."""
        if first == 0:
            raise CorruptImage("The header's cluster is counted as free: check the image")
        if self.guard is not None:
            bits = self._geometry.cluster_bits
            self.guard.check(first << bits, count << bits)

    def _check_reach(self, end: int) -> None:
        if end << self._geometry.cluster_bits > MAX_HOST_OFFSET:
            raise ImageError("The file has reached the largest size that the format can address")

    def _trim(self) -> None:
        for number in list(self._blocks)[: -self._kept_blocks]:
            if number not in self._dirty_blocks:
                del self._blocks[number]


def _uncounted(offset: int) -> CorruptImage:
    return CorruptImage("A cluster in use has a refcount of zero: check the image", offset)
