"""Changing what guest clusters are mapped to: the L2 entries of a writable disk.

Readers see each change whole: the mapping lock is held while entries change, never during I/O on
data. Source: the specification's sections "Cluster mapping" and "Extended L2 Entries".
"""

from __future__ import annotations

import threading
from array import array

from imgtool.extent import Extent
from imgtool.formats.qcow2.bulk import any_set, series
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.l2 import unaligned
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
        return self._own_host(entry)

    def kept_run(self, offset: int, end: int) -> tuple[int, int] | None:
        """The host offset of a range that may be overwritten in place, and where that ends.

        None where ``offset`` has no host cluster of its own. ``offset`` and ``end`` are mapped by
        one L2 table; the range goes on for as long as the host clusters follow each other.
        """
        host = self.kept_host(offset)
        if host is None:
            return None
        geometry = self._header.geometry
        size, step = geometry.cluster_size, geometry.l2_entry_size // 8
        table = self._tables.get(offset // geometry.l2_coverage)
        assert table is not None
        base = align_down(offset, geometry.l2_coverage)
        first = ((offset - base) >> geometry.cluster_bits) * step
        stop = align_down(offset, size) + size
        following = host | COPIED
        for entry in table[first + step : geometry.clusters(end - base) * step : step]:
            following += size
            # Zeros that have a place may be overwritten there.
            if entry & ~ZERO_FLAG != following:
                break
            stop += size
        return host + offset % size, min(stop, end)

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
        if any_set(entries):
            for index, entry in enumerate(entries, first):
                if self._own_host(entry) is not None:
                    return base + (index << geometry.cluster_bits)
        return end

    def in_place(self, offset: int) -> int | None:
        """The host offset at which ``offset`` can be overwritten and is seen at once, if any."""
        entry, bitmap = self.entry(offset)
        geometry = self._header.geometry
        host = self._own_host(entry)
        if host is None:
            return None
        if geometry.extended_l2:
            subcluster = offset % geometry.cluster_size // geometry.subcluster_size
            if not bitmap >> subcluster & 1:
                return None
        elif entry & ZERO_FLAG:
            return None
        return host + offset % geometry.cluster_size

    def moves_whole(self, offset: int) -> bool:
        """Whether writing at ``offset`` gives its cluster a new place, and all must be copied."""
        entry, _ = self.entry(offset)
        return bool(entry) and (bool(entry & COMPRESSED) or not entry & COPIED)

    def _own_host(self, entry: int) -> int | None:
        """The host cluster that an L2 entry has for itself, if it has one."""
        if entry & COMPRESSED or not entry & COPIED:
            return None
        host = self._host(entry)
        # Offset 0 is the header's, except in an external data file.
        return host if host or self._external else None

    def _host(self, entry: int) -> int:
        host = entry & L2_OFFSET_MASK
        if host & (self._header.geometry.cluster_size - 1):
            raise unaligned(host)
        return host

    # Changing

    def give_clusters(self, offset: int, host: int, count: int) -> None:
        """Give host clusters to guest clusters that have none, with no subcluster allocated.

        What is below still shows, and the next part of the same cluster finds its place.
        """
        geometry = self._header.geometry
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        first = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        places = slice(2 * first, 2 * (first + count), 2)
        hosts = self._entries(host, count)
        with self.lock:
            old = table[places]
            if any_set(old):
                hosts = array("Q", (mine or new for mine, new in zip(old, hosts, strict=True)))
            table[places] = hosts

    def _entries(self, host: int, count: int) -> array[int]:
        """The L2 entries of ``count`` host clusters that lie together and are this disk's alone."""
        return series(host | COPIED, count, self._header.geometry.cluster_size)

    def link(self, extent: Extent) -> None:
        """Map the guest range of ``extent`` to its host range; let go of what it replaces."""
        geometry = self._header.geometry
        assert extent.host_offset is not None
        offset, host, end = extent.offset, extent.host_offset, extent.end
        size = geometry.cluster_size
        while offset < end:
            stop = min(end, align_down(offset, geometry.l2_coverage) + geometry.l2_coverage)
            if geometry.extended_l2 and (offset % size or stop - offset < size):
                stop = min(stop, align_down(offset, size) + size)
                self._link_subclusters(offset, stop, host)
            elif geometry.extended_l2:
                stop = align_down(stop, size)
                self._link_clusters(offset, host, (stop - offset) // size)
            else:
                self._link_clusters(offset, host, geometry.clusters(stop - offset))
            host += stop - offset
            offset = stop

    def _link_clusters(self, offset: int, host: int, count: int) -> None:
        """Link whole clusters that one L2 table maps."""
        geometry = self._header.geometry
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        step = geometry.l2_entry_size // 8
        first = (offset % geometry.l2_coverage >> geometry.cluster_bits) * step
        places = slice(first, first + count * step, step)
        new = self._entries(host, count)
        with self.lock:
            old = table[places]
            table[places] = new
            if geometry.extended_l2:
                table[first + 1 : first + 1 + count * step : step] = array("Q", [_ALL]) * count
        if any_set(old) and old != new:
            for position, entry in enumerate(old):
                self.release(entry, unless=host + position * geometry.cluster_size)

    def _link_subclusters(self, offset: int, end: int, host: int) -> None:
        """Link a part of one cluster; ``host`` is the host offset of ``offset``."""
        geometry = self._header.geometry
        start = offset % geometry.cluster_size
        bits = self._bits(start, start + end - offset)
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        index = 2 * (offset % geometry.l2_coverage >> geometry.cluster_bits)
        with self.lock:
            old, bitmap = table[index], table[index + 1]
            if old & COMPRESSED:
                bitmap = 0
            table[index] = (host - start) | COPIED
            table[index + 1] = (bitmap | bits) & ~(bits << SUBCLUSTERS)
        self.release(old, unless=host - start)

    def link_compressed(self, offset: int, places: list[tuple[int, int]]) -> None:
        """Map the guest clusters from ``offset`` on to compressed bytes.

        ``places`` are the host offset and the length of each.
        """
        geometry = self._header.geometry
        shift = 62 - (geometry.cluster_bits - 8)
        entries = array("Q")
        for host, length in places:
            sectors = (host + length - 1) // 512 - host // 512
            entries.append(COMPRESSED | sectors << shift | host)
        step, done = geometry.l2_entry_size // 8, 0
        while done < len(entries):
            table = self._metadata.l2_table(offset // geometry.l2_coverage)
            index = (offset % geometry.l2_coverage) >> geometry.cluster_bits
            count = min(len(entries) - done, geometry.l2_entries - index)
            begin, end = index * step, (index + count) * step
            with self.lock:
                old = table[begin:end:step]
                table[begin:end:step] = entries[done : done + count]
                if geometry.extended_l2:
                    table[begin + 1 : end : step] = array("Q", bytes(8 * count))
            if any_set(old):
                for entry in old:
                    self.release(entry)
            done += count
            offset += count << geometry.cluster_bits

    def make_zero(self, offset: int, end: int, *, unmap: bool, backed: bool) -> None:
        """Make whole guest clusters, all mapped by one L2 table, read as zeros.

        ``backed`` says that something shows where nothing is mapped; then version 3 is needed.
        """
        from imgtool.formats.qcow2.zeroing import Zeroing, host_runs

        geometry = self._header.geometry
        flag = self._header.version >= 3
        assert flag or not backed
        zeroing = Zeroing(geometry.extended_l2, flag, unmap, self._external, backed)
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        first = offset % geometry.l2_coverage >> geometry.cluster_bits
        with self.lock:
            gone = zeroing.zero(table, first, geometry.clusters(end - offset))
        compressed = gone & COMPRESSED != 0
        for entry in gone[compressed].tolist():
            self.release(entry, discard=unmap)
        if not self._external:
            for host, count in host_runs(gone[~compressed], geometry.cluster_bits):
                self._metadata.let_go(host, count, discard=unmap)

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

    def make_subclusters_zero(self, offset: int, end: int) -> None:
        """Make a part of one uncompressed guest cluster zeros; its host cluster stays."""
        geometry = self._header.geometry
        start = offset % geometry.cluster_size
        bits = self._bits(start, start + end - offset)
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        index = 2 * (offset % geometry.l2_coverage >> geometry.cluster_bits)
        with self.lock:
            table[index + 1] = (table[index + 1] | bits << SUBCLUSTERS) & ~bits

    def release(self, entry: int, *, unless: int | None = None, discard: bool = False) -> None:
        """Let go of what an L2 entry referenced, if that is not the cluster at ``unless``."""
        if entry & COMPRESSED:
            host, length = self._header.geometry.compressed_range(entry)
            self.release_compressed(host, length, discard=discard)
        elif not self._external:
            host = self._host(entry)
            if host and host != unless:
                self._metadata.let_go(host, 1, discard=discard)

    def release_compressed(self, host: int, length: int, *, discard: bool = False) -> None:
        """Let go of ``length`` compressed bytes at ``host``, in each host cluster they touch."""
        geometry = self._header.geometry
        first = align_down(host, geometry.cluster_size)
        clusters = geometry.clusters(host + length - first)
        self._metadata.let_go(first, clusters, discard=discard)

    @property
    def _external(self) -> bool:
        return self._header.has_data_file

    def _bits(self, start: int, end: int) -> int:
        """The bits of the subclusters that ``[start, end)`` of a cluster touches."""
        size = self._header.geometry.subcluster_size
        return ((1 << -(-end // size)) - 1) & ~((1 << start // size) - 1)
