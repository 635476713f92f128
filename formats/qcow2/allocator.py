"""Host clusters: which are free, which are taken, and the refcounts that say so.

Source: the specification's section "Host cluster management". Nothing here decides when something
is written: :mod:`imgtool.formats.qcow2.metadata` orders that.
"""

from __future__ import annotations

from array import array

from imgtool.errors import CorruptImage, ImageError
from imgtool.formats.qcow2.geometry import MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES, Geometry
from imgtool.formats.qcow2.refcount_block import RefcountBlock
from imgtool.formats.qcow2.schema import REFCOUNT_OFFSET_MASK
from imgtool.schema.fields import big_endian_bytes
from imgtool.storage.base import Storage
from imgtool.units import div_round_up


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
        #: Host offset and clusters of a table that was replaced, until its owner has freed it.
        self.retired: tuple[int, int] | None = None
        self._storage = storage
        self._geometry = geometry
        self._blocks: dict[int, RefcountBlock] = {}
        self._dirty_blocks: set[int] = set()
        self._dirty_table: set[int] = set()
        self._cursor = 0

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
                self._grow_table(number)
                continue
            block = self._block(number)
            if block is None:
                self._check_reach(self._cursor + 1)
                self._make_block(number, self._cursor)[index] = 1
                self._cursor += 1
                continue
            index, count = block.free_run(index, wanted)
            if not count:
                self._cursor = (number + 1) * per_block
                continue
            first = number * per_block + index
            self._cursor = first + count
            if first == 0:
                raise CorruptImage("The header's cluster is counted as free: check the image")
            self._check_reach(first + count)
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

    def refcount(self, index: int) -> int:
        """The refcount of one host cluster, by index."""
        number, slot = divmod(index, self._geometry.refcount_block_entries)
        block = self._block(number) if number < len(self.table) else None
        return 0 if block is None else block[slot]

    def change(self, offset: int, count: int, by: int) -> None:
        """Add ``by`` to the refcounts of ``count`` clusters from host ``offset`` on.

        Raises :class:`CorruptImage` for refcounts that would fall below zero, and
        :class:`ImageError` for those that would not fit their width.
        """
        first = offset >> self._geometry.cluster_bits
        for index in range(first, first + count):
            number, slot = divmod(index, self._geometry.refcount_block_entries)
            block = self._block(number) if number < len(self.table) else None
            value = (0 if block is None else block[slot]) + by
            if block is None or value < 0:
                raise CorruptImage(
                    "A cluster in use has a refcount of zero: check the image",
                    index << self._geometry.cluster_bits,
                )
            if value > self._geometry.max_refcount:
                raise ImageError(f"A refcount exceeds {self._geometry.refcount_bits} bits")
            block[slot] = value
            self._dirty_blocks.add(number)
            if not value:
                self._cursor = min(self._cursor, index)

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
        data = self._storage.read_exact(offset, self._geometry.cluster_size, "A refcount block")
        block = self._blocks[number] = RefcountBlock(data, self._geometry.refcount_order)
        return block

    def _make_block(self, number: int, index: int) -> RefcountBlock:
        """Make the refcount block ``number``, all zeros, in host cluster ``index``."""
        data = bytearray(self._geometry.cluster_size)
        block = self._blocks[number] = RefcountBlock(data, self._geometry.refcount_order)
        self.table[number] = index << self._geometry.cluster_bits
        self._dirty_blocks.add(number)
        self._dirty_table.add(number)
        return block

    def _grow_table(self, number: int) -> None:
        """Put a larger refcount table where refcount block ``number`` would begin to count.

        Everything from there on is free, since no table reaches that far.
        """
        entries_per_cluster = self._geometry.cluster_size // 8
        # Half as much again, and room for the blocks that count the new table itself.
        clusters = div_round_up(number + number // 2 + entries_per_cluster, entries_per_cluster)
        clusters = min(clusters, MAX_REFCOUNT_TABLE_BYTES // self._geometry.cluster_size)
        grown = clusters * entries_per_cluster - len(self.table)
        if grown <= 0:
            raise ImageError("The refcount table has reached its largest size: the image is full")
        self.retired = (self.table_offset, len(self.table) // entries_per_cluster)
        self.table.extend([0] * grown)
        start = self.take_region(number * self._geometry.refcount_block_entries, clusters)
        self.table_offset = start << self._geometry.cluster_bits
        self._dirty_table.update(range(0, len(self.table), entries_per_cluster))
        self._cursor = start + clusters

    def _check_reach(self, end: int) -> None:
        if end << self._geometry.cluster_bits > MAX_HOST_OFFSET:
            raise ImageError("The file has reached the largest size that the format can address")

    def _trim(self) -> None:
        keep = max(4, (4 << 20) // self._geometry.cluster_size)
        for number in list(self._blocks)[:-keep]:
            if number not in self._dirty_blocks:
                del self._blocks[number]
