"""Changing what guest clusters are mapped to: the L2 entries of a writable disk.

Readers see each change whole: the mapping lock is held while entries change, never during I/O on
data. Source: the specification's sections "Cluster mapping" and "Extended L2 Entries".
"""

from __future__ import annotations

import threading
from array import array

from imgtool.extent import Extent
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.metadata import Metadata
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L2_OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
)
from imgtool.formats.qcow2.tables import L2Tables
from imgtool.units import align_down

_ALL = (1 << SUBCLUSTERS) - 1


class ClusterMap:
    """The mapping of the active disk, for reading and changing entry by entry.

    The caller holds the device's write lock; ``lock`` is what readers share.
    """

    def __init__(self, tables: L2Tables, metadata: Metadata) -> None:
        self.lock = threading.RLock()
        self._tables = tables
        self._metadata = metadata

    @property
    def _header(self) -> Header:
        return self._metadata.header

    # Looking

    def entry(self, offset: int) -> tuple[int, int]:
        """The L2 entry that maps ``offset``, and its subcluster bitmap (0 without extended L2)."""
        geometry = self._header.geometry
        table = self._tables.get(offset // geometry.l2_coverage)
        if table is None:
            return 0, 0
        index = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        if geometry.extended_l2:
            return table[2 * index], table[2 * index + 1]
        return table[index], 0

    def has_table(self, offset: int) -> bool:
        """Whether there is an L2 table for ``offset``."""
        return self._tables.get(offset // self._header.geometry.l2_coverage) is not None

    def kept_host(self, offset: int) -> int | None:
        """The host cluster that is this disk's alone and may be overwritten in place."""
        entry, _ = self.entry(offset)
        if entry & COMPRESSED or not entry & COPIED:
            return None
        return entry & L2_OFFSET_MASK

    def first_kept(self, offset: int, end: int) -> int:
        """The first cluster boundary behind ``offset`` whose cluster is kept, at most ``end``.

        ``offset`` and ``end`` are mapped by one L2 table, which exists.
        """
        geometry = self._header.geometry
        table = self._tables.get(offset // geometry.l2_coverage)
        assert table is not None
        base = align_down(offset, geometry.l2_coverage)
        step = geometry.l2_entry_size // 8
        first = ((offset - base) >> geometry.cluster_bits) + 1
        last = geometry.clusters(end - base)
        entries = table[first * step : last * step : step]
        # Most often nothing is mapped there yet.
        if any(entries):
            for index, entry in enumerate(entries, first):
                if entry & COPIED and not entry & COMPRESSED:
                    return base + (index << geometry.cluster_bits)
        return end

    def in_place(self, offset: int) -> int | None:
        """The host offset at which ``offset`` can be overwritten and is seen at once, if any."""
        entry, bitmap = self.entry(offset)
        geometry = self._header.geometry
        if entry & COMPRESSED or not entry & COPIED:
            return None
        if geometry.extended_l2:
            subcluster = offset % geometry.cluster_size // geometry.subcluster_size
            if not bitmap >> subcluster & 1:
                return None
        elif entry & ZERO_FLAG:
            return None
        return (entry & L2_OFFSET_MASK) + offset % geometry.cluster_size

    def moves_whole(self, offset: int) -> bool:
        """Whether writing at ``offset`` gives its cluster a new place, and all must be copied."""
        entry, _ = self.entry(offset)
        return bool(entry) and (bool(entry & COMPRESSED) or not entry & COPIED)

    # Changing

    def give_clusters(self, offset: int, host: int, count: int) -> None:
        """Give host clusters to guest clusters that have none, with no subcluster allocated.

        What is below still shows, and the next part of the same cluster finds its place.
        """
        geometry = self._header.geometry
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        first = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        with self.lock:
            for position in range(count):
                index = 2 * (first + position)
                if not table[index]:
                    table[index] = (host + (position << geometry.cluster_bits)) | COPIED

    def link(self, extent: Extent) -> None:
        """Map the guest range of ``extent`` to its host range; let go of what it replaces."""
        if self._header.geometry.extended_l2:
            self._link_subclusters(extent)
        else:
            self._link_clusters(extent)

    def _link_clusters(self, extent: Extent) -> None:
        geometry = self._header.geometry
        assert extent.host_offset is not None
        step = geometry.cluster_size
        offset, host = extent.offset, extent.host_offset
        while offset < extent.end:
            table_end = align_down(offset, geometry.l2_coverage) + geometry.l2_coverage
            stop = min(extent.end, table_end)
            table = self._metadata.l2_table(offset // geometry.l2_coverage)
            first = (offset % geometry.l2_coverage) >> geometry.cluster_bits
            count = geometry.clusters(stop - offset)
            new = array("Q", range(host | COPIED, (host | COPIED) + count * step, step))
            with self.lock:
                old = table[first : first + count]
                table[first : first + count] = new
            if any(old):
                for position, entry in enumerate(old):
                    self.release(entry, unless=host + position * step)
            host += stop - offset
            offset = stop

    def _link_subclusters(self, extent: Extent) -> None:
        geometry = self._header.geometry
        assert extent.host_offset is not None
        offset = extent.offset
        while offset < extent.end:
            cluster = align_down(offset, geometry.cluster_size)
            stop = min(extent.end, cluster + geometry.cluster_size)
            host = extent.host_offset + (cluster - extent.offset)
            bits = self._bits(offset - cluster, stop - cluster)
            table = self._metadata.l2_table(offset // geometry.l2_coverage)
            index = 2 * ((cluster % geometry.l2_coverage) >> geometry.cluster_bits)
            with self.lock:
                old, bitmap = table[index], table[index + 1]
                if old & COMPRESSED:
                    bitmap = 0
                table[index] = host | COPIED
                table[index + 1] = (bitmap | bits) & ~(bits << SUBCLUSTERS)
            self.release(old, unless=host)
            offset = stop

    def link_compressed(self, offset: int, host: int, length: int) -> None:
        """Map the guest cluster at ``offset`` to ``length`` compressed bytes at ``host``."""
        geometry = self._header.geometry
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        shift = 62 - (geometry.cluster_bits - 8)
        sectors = (host + length - 1) // 512 - host // 512
        index = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        with self.lock:
            if geometry.extended_l2:
                index *= 2
                table[index + 1] = 0
            old = table[index]
            table[index] = COMPRESSED | sectors << shift | host
        self.release(old)

    def make_zero(self, cluster: int, *, unmap: bool) -> None:
        """Make a guest cluster read as zeros; needs version 3, and no extended L2 entries."""
        geometry = self._header.geometry
        table = self._metadata.l2_table(cluster // geometry.l2_coverage)
        index = (cluster % geometry.l2_coverage) >> geometry.cluster_bits
        with self.lock:
            entry = table[index]
            if entry & COPIED and not entry & COMPRESSED and (not unmap or self._external):
                table[index] = entry | ZERO_FLAG
                return
            table[index] = ZERO_FLAG
        self.release(entry, discard=unmap)

    def unallocate(self, cluster: int) -> None:
        """Leave a guest cluster to what is below."""
        geometry = self._header.geometry
        table = self._metadata.l2_table(cluster // geometry.l2_coverage)
        index = (cluster % geometry.l2_coverage) >> geometry.cluster_bits
        with self.lock:
            if geometry.extended_l2:
                index *= 2
                table[index + 1] = 0
            entry = table[index]
            table[index] = 0
        self.release(entry, discard=True)

    def make_subclusters_zero(self, cluster: int, start: int, end: int, *, unmap: bool) -> None:
        """Make the bytes from ``start`` to ``end`` of an uncompressed guest cluster zeros.

        ``start`` and ``end`` are multiples of the subcluster size, or of the cluster's end.
        """
        geometry = self._header.geometry
        bits = self._bits(start, end)
        table = self._metadata.l2_table(cluster // geometry.l2_coverage)
        index = 2 * ((cluster % geometry.l2_coverage) >> geometry.cluster_bits)
        with self.lock:
            entry, bitmap = table[index], table[index + 1]
            whole = bits == _ALL and (unmap or not entry & COPIED)
            keep = not whole or (self._external and not entry & COMPRESSED)
            if whole:
                table[index + 1] = _ALL << SUBCLUSTERS
            else:
                table[index + 1] = (bitmap | bits << SUBCLUSTERS) & ~bits
            if not keep:
                table[index] = 0
        if not keep:
            self.release(entry, discard=unmap)

    def release(self, entry: int, *, unless: int | None = None, discard: bool = False) -> None:
        """Let go of what an L2 entry referenced, if that is not the cluster at ``unless``."""
        geometry = self._header.geometry
        if entry & COMPRESSED:
            host, length = geometry.compressed_range(entry)
            first = align_down(host, geometry.cluster_size)
            clusters = geometry.clusters(host + length - first)
            self._metadata.free_later(first, clusters, discard=discard)
        elif not self._external:
            host = entry & L2_OFFSET_MASK
            if host and host != unless:
                self._metadata.free_later(host, 1, discard=discard)

    @property
    def _external(self) -> bool:
        return self._header.has_data_file

    def _bits(self, start: int, end: int) -> int:
        """The bits of the subclusters that ``[start, end)`` of a cluster touches."""
        size = self._header.geometry.subcluster_size
        return ((1 << -(-end // size)) - 1) & ~((1 << start // size) - 1)
