"""A qcow2 disk that can be written to.

Every allocating write goes three steps: host clusters are taken (:meth:`reserve`), the data is
written to them, and only then does the mapping show them (:meth:`link`). Nothing is ever linked
that has not been written.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from imgtool import codecs
from imgtool.device import BlockDevice, Limits
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.metadata import Metadata
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L2_OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
    Compression,
)
from imgtool.storage.base import Storage
from imgtool.units import align_down, align_up

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1


class WritableQcow2(Qcow2Device):
    """The active disk of an image, open for writing; ``fresh`` if its header is yet to come."""

    read_only = False

    def __init__(
        self,
        storage: Storage,
        header: Header,
        l1: array[int],
        allocator: Allocator,
        *,
        data: Storage,
        backing: BlockDevice | None,
        fresh: bool,
    ) -> None:
        super().__init__(storage, header, l1, data=data, backing=backing)
        self._file = storage
        self._data: Storage = data
        self._lock = threading.RLock()
        self._allocator = allocator
        self._metadata = Metadata(storage, data, header, self._tables, allocator, fresh=fresh)
        # Where the next compressed cluster goes: behind the last one, in the same host cluster.
        self._packed_end = 0
        self._closed = False

    @property
    def limits(self) -> Limits:
        """Subclusters can be reserved alone in a new image; elsewhere clusters may have to move."""
        geometry = self.header.geometry
        fresh = self._metadata.unfinished
        return Limits(alignment=geometry.subcluster_size if fresh else geometry.cluster_size)

    # Reserving and linking

    def _reserve(self, offset: int, length: int) -> list[Extent]:
        with self._lock:
            self._flush_if_crowded()
            return list(self._reserve_runs(offset, length))

    def _reserve_runs(self, offset: int, length: int) -> Iterator[Extent]:
        geometry = self.header.geometry
        end = offset + length
        while offset < end:
            stop = min(end, align_down(offset, geometry.l2_coverage) + geometry.l2_coverage)
            kept = self._kept_host(offset)
            if self.header.has_data_file:
                # In an external data file a cluster's place is its guest offset.
                host = offset
            elif kept is not None:
                stop = min(stop, align_down(offset, geometry.cluster_size) + geometry.cluster_size)
                host = kept + offset % geometry.cluster_size
            else:
                # The L2 table comes first, so that it lies in front of the data it maps.
                self._metadata.l2_table(offset // geometry.l2_coverage)
                stop = self._first_kept(offset, stop)
                start = align_down(offset, geometry.cluster_size)
                wanted = geometry.clusters(stop - start)
                host, count = self._allocator.allocate(wanted)
                stop = min(stop, start + (count << geometry.cluster_bits))
                if geometry.extended_l2:
                    self._give_clusters(start, host, count)
                host += offset - start
            yield Extent(offset, stop - offset, Kind.DATA, self._data, host)
            offset = stop

    def _give_clusters(self, offset: int, host: int, count: int) -> None:
        """Give host clusters to guest clusters that have none, with no subcluster allocated.

        What is below still shows, and the next part of the same cluster finds its place.
        """
        geometry = self.header.geometry
        table = self._metadata.l2_table(offset // geometry.l2_coverage)
        first = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        for position in range(count):
            index = 2 * (first + position)
            if not table[index]:
                table[index] = (host + (position << geometry.cluster_bits)) | COPIED

    def _entry(self, offset: int) -> tuple[int, int]:
        """The L2 entry that maps ``offset``, and its subcluster bitmap (0 without extended L2)."""
        geometry = self.header.geometry
        table = self._tables.get(offset // geometry.l2_coverage)
        if table is None:
            return 0, 0
        index = (offset % geometry.l2_coverage) >> geometry.cluster_bits
        if geometry.extended_l2:
            return table[2 * index], table[2 * index + 1]
        return table[index], 0

    def _kept_host(self, offset: int) -> int | None:
        """The host cluster that is this disk's alone and may be overwritten in place."""
        entry, _ = self._entry(offset)
        if entry & COMPRESSED or not entry & COPIED:
            return None
        return entry & L2_OFFSET_MASK

    def _first_kept(self, offset: int, end: int) -> int:
        """The first cluster boundary behind ``offset`` whose cluster is kept, at most ``end``."""
        geometry = self.header.geometry
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

    def _link(self, extents: Iterable[Extent]) -> None:
        with self._lock:
            for extent in extents:
                self._link_extent(extent)

    def _link_extent(self, extent: Extent) -> None:
        geometry = self.header.geometry
        assert extent.host_offset is not None
        if geometry.extended_l2:
            self._link_subclusters(extent)
            return
        table = self._metadata.l2_table(extent.offset // geometry.l2_coverage)
        first = (extent.offset % geometry.l2_coverage) >> geometry.cluster_bits
        count = geometry.clusters(extent.length)
        old = table[first : first + count]
        start = extent.host_offset | COPIED
        step = geometry.cluster_size
        table[first : first + count] = array("Q", range(start, start + count * step, step))
        if any(old):
            for position, entry in enumerate(old):
                self._release(entry, unless=extent.host_offset + position * step)

    def _link_subclusters(self, extent: Extent) -> None:
        geometry = self.header.geometry
        assert extent.host_offset is not None
        offset, end = extent.offset, extent.end
        while offset < end:
            cluster = align_down(offset, geometry.cluster_size)
            stop = min(end, cluster + geometry.cluster_size)
            host = extent.host_offset + (cluster - extent.offset)
            first = (offset - cluster) // geometry.subcluster_size
            last = -(-(stop - cluster) // geometry.subcluster_size)
            bits = ((1 << last) - 1) & ~((1 << first) - 1)
            table = self._metadata.l2_table(offset // geometry.l2_coverage)
            index = 2 * ((cluster % geometry.l2_coverage) >> geometry.cluster_bits)
            old, bitmap = table[index], table[index + 1]
            if old & COMPRESSED:
                bitmap = 0
            table[index] = host | COPIED
            table[index + 1] = (bitmap | bits) & ~(bits << SUBCLUSTERS)
            self._release(old, unless=host)
            offset = stop

    def _release(self, entry: int, *, unless: int | None = None) -> None:
        """Let go of what an L2 entry referenced, if that is not the cluster at ``unless``."""
        geometry = self.header.geometry
        if entry & COMPRESSED:
            host, length = geometry.compressed_range(entry)
            first = align_down(host, geometry.cluster_size)
            self._metadata.free_later(first, geometry.clusters(host + length - first))
        elif not self.header.has_data_file:
            host = entry & L2_OFFSET_MASK
            if host and host != unless:
                self._metadata.free_later(host, 1)

    # Writing

    def _write(self, offset: int, view: memoryview) -> None:
        with self._lock:
            done = 0
            while done < len(view):
                here = offset + done
                start, stop = self._uniform_run(here, offset + len(view))
                part = view[done : done + stop - here]
                done += len(part)
                if start is not None:
                    self._data.write_at(start, part)
                else:
                    self._write_new(here, part, self._granularity(here))
            self._flush_if_crowded()

    def _uniform_run(self, offset: int, end: int) -> tuple[int | None, int]:
        """Host offset of what can be overwritten in place (None: nothing), and where that ends."""
        geometry = self.header.geometry
        size = geometry.subcluster_size
        host = self._in_place(offset)
        stop = align_down(offset, size) + size
        if host is None and geometry.extended_l2:
            end = min(end, align_down(offset, geometry.cluster_size) + geometry.cluster_size)
        while stop < end:
            following = self._in_place(stop)
            if (host is None) != (following is None):
                break
            if host is not None and following != host + stop - offset:
                break
            stop += size
        return host, min(stop, end)

    def _in_place(self, offset: int) -> int | None:
        entry, bitmap = self._entry(offset)
        geometry = self.header.geometry
        if entry & COMPRESSED or not entry & COPIED:
            return None
        if geometry.extended_l2:
            subcluster = offset % geometry.cluster_size // geometry.subcluster_size
            if not bitmap >> subcluster & 1:
                return None
        elif entry & ZERO_FLAG and self.header.version >= 3:
            return None
        return (entry & L2_OFFSET_MASK) + offset % geometry.cluster_size

    def _granularity(self, offset: int) -> int:
        """What must be rewritten whole around ``offset``: a cluster that moves takes all along."""
        entry, _ = self._entry(offset)
        moves = bool(entry) and (bool(entry & COMPRESSED) or not entry & COPIED)
        geometry = self.header.geometry
        return geometry.cluster_size if moves else geometry.subcluster_size

    def _write_new(self, offset: int, part: memoryview, granularity: int) -> None:
        """Write what has no place of its own yet, with copies of what surrounds it."""
        start = align_down(offset, granularity)
        end = align_up(offset + len(part), granularity)
        head = self._old(start, offset - start)
        tail = self._old(offset + len(part), end - offset - len(part))
        extents = list(self._reserve_runs(start, end - start))
        pieces = ((start, head), (offset, part), (offset + len(part), tail))
        for extent in extents:
            assert extent.host_offset is not None
            for begin, piece in pieces:
                low, high = max(begin, extent.offset), min(begin + len(piece), extent.end)
                if low < high:
                    self._data.write_at(
                        extent.host_offset + low - extent.offset, piece[low - begin : high - begin]
                    )
        self._link(extents)

    def _old(self, offset: int, length: int) -> memoryview:
        """What the disk holds now, with zeros behind its end."""
        view = memoryview(bytearray(length))
        inside = max(0, min(length, self._size - offset))
        if inside:
            self._read(offset, view[:inside])
        return view

    # Zeros

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        granularity = self.header.geometry.subcluster_size
        end = offset + length
        # The last cluster counts as whole if the disk ends in it.
        aligned_end = (
            align_down(end, granularity) if end < self._size else align_up(end, granularity)
        )
        aligned = align_up(offset, granularity)
        with self._lock:
            if aligned >= aligned_end:
                super()._write_zeroes(offset, length, unmap)
                return
            if offset < aligned:
                super()._write_zeroes(offset, aligned - offset, unmap)
            self._zero_clusters(aligned, aligned_end, unmap)
            if aligned_end < end:
                super()._write_zeroes(aligned_end, end - aligned_end, unmap)
            self._flush_if_crowded()

    def _zero_clusters(self, offset: int, end: int, unmap: bool) -> None:
        geometry = self.header.geometry
        while offset < end:
            cluster = align_down(offset, geometry.cluster_size)
            stop = min(end, cluster + geometry.cluster_size)
            if self.header.data_file_raw:
                self._data.write_zeroes(offset, stop - offset, unmap=unmap)
            if self._backing is None and not any(self._entry(offset)):
                # What is unallocated reads as zeros already: skip the rest of an absent L2 table.
                if self._tables.get(offset // geometry.l2_coverage) is None:
                    stop = min(end, align_down(offset, geometry.l2_coverage) + geometry.l2_coverage)
            elif geometry.extended_l2:
                self._zero_subclusters(cluster, offset, stop, unmap)
            else:
                self._zero_cluster(cluster, min(stop, self._size), unmap)
            offset = stop

    def _zero_cluster(self, cluster: int, end: int, unmap: bool) -> None:
        geometry = self.header.geometry
        table = self._metadata.l2_table(cluster // geometry.l2_coverage)
        index = (cluster % geometry.l2_coverage) >> geometry.cluster_bits
        entry = table[index]
        if self.header.version < 3:
            if self._backing is not None and cluster < self._backing.size:
                super()._write_zeroes(cluster, end - cluster, unmap)
                return
            table[index] = 0
            self._release(entry)
        elif entry & COPIED and not entry & COMPRESSED and (not unmap or self.header.has_data_file):
            table[index] = entry | ZERO_FLAG
        else:
            table[index] = ZERO_FLAG
            self._release(entry)

    def _zero_subclusters(self, cluster: int, offset: int, end: int, unmap: bool) -> None:
        geometry = self.header.geometry
        first = (offset - cluster) // geometry.subcluster_size
        last = -(-(end - cluster) // geometry.subcluster_size)
        bits = ((1 << last) - 1) & ~((1 << first) - 1)
        table = self._metadata.l2_table(cluster // geometry.l2_coverage)
        index = 2 * ((cluster % geometry.l2_coverage) >> geometry.cluster_bits)
        entry, bitmap = table[index], table[index + 1]
        if bits == _ALL_SUBCLUSTERS and (unmap or not entry & COPIED):
            keep = self.header.has_data_file and not entry & COMPRESSED
            table[index] = entry if keep else 0
            table[index + 1] = _ALL_SUBCLUSTERS << SUBCLUSTERS
            if not keep:
                self._release(entry)
        elif entry & COMPRESSED:
            super()._write_zeroes(offset, min(end, self._size) - offset, unmap)
        else:
            table[index + 1] = (bitmap | bits << SUBCLUSTERS) & ~bits

    def _discard(self, offset: int, length: int) -> None:
        """Give whole clusters back; they read as zeros afterwards."""
        granularity = self.header.geometry.cluster_size
        start = align_up(offset, granularity)
        end = offset + length
        end = align_down(end, granularity) if end < self._size else end
        if start < end:
            self._write_zeroes(start, end - start, unmap=True)

    # Compressed clusters

    @property
    def encoded_size(self) -> int:
        return 0 if self.header.has_data_file else self.header.geometry.cluster_size

    def encode(self, data: ReadableBuffer, level: int | None = None) -> bytes | None:
        if self.header.compression is Compression.ZSTD:
            encoded = codecs.zstd_compress(data, level)
        else:
            encoded = codecs.deflate(data, level)
        return encoded if len(encoded) < self.header.geometry.cluster_size else None

    def write_encoded(self, offset: int, encoded: bytes) -> None:
        """Pack ``encoded`` behind the compressed cluster before it."""
        geometry = self.header.geometry
        self._check_write(offset, min(geometry.cluster_size, self._size - offset))
        with self._lock:
            self._flush_if_crowded()
            table = self._metadata.l2_table(offset // geometry.l2_coverage)
            host = self._place_packed(len(encoded))
            self._file.write_at(host, encoded)
            shift = 62 - (geometry.cluster_bits - 8)
            sectors = (host + len(encoded) - 1) // 512 - host // 512
            index = (offset % geometry.l2_coverage) >> geometry.cluster_bits
            if geometry.extended_l2:
                index *= 2
                table[index + 1] = 0
            old = table[index]
            table[index] = COMPRESSED | sectors << shift | host
            self._release(old)

    def _place_packed(self, length: int) -> int:
        """Where the next ``length`` bytes go, with the refcounts of the clusters they touch."""
        geometry = self.header.geometry
        size = geometry.cluster_size
        room = -self._packed_end % size
        shared = room > 0 and self._allocator.refcount(self._packed_end // size)
        if shared and shared < geometry.max_refcount:
            tail = align_down(self._packed_end, size)
            if length <= room:
                host = self._packed_end
                self._allocator.change(tail, 1, +1)
                self._packed_end += length
                return host
            following, _ = self._allocator.allocate(1)
            if following == tail + size:
                host = self._packed_end
                self._allocator.change(tail, 1, +1)
                self._packed_end += length
                return host
        else:
            following, _ = self._allocator.allocate(1)
        # An encoded cluster is smaller than a cluster, so one host cluster holds it.
        self._packed_end = following + length
        return following

    # Flushing and closing

    def _flush_if_crowded(self) -> None:
        if self._metadata.crowded:
            self._metadata.flush()

    def _flush(self) -> None:
        with self._lock:
            self._metadata.flush()

    def finish(self) -> None:
        """Write out everything that has changed, and then the header, which makes it an image."""
        with self._lock:
            self._metadata.flush()
            self.storage.flush()
            self._metadata.write_header()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if not self._metadata.unfinished:
                self.flush()
        finally:
            super().close()

    def _resize(self, size: int) -> None:
        raise ImageError("qcow2 images cannot be resized in place yet", filename=self.name)
