"""A qcow2 disk that can be written to.

Every allocating write goes three steps: host clusters are taken (:meth:`reserve`), the data is
written to them, and only then does the mapping show them (:meth:`link`). Nothing is ever linked
that has not been written.

One lock serialises what changes the image; readers do not wait for it. They look at the mapping
under a lock of its own, and read inside a gate that is drained before freed clusters are reused.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from imgtool.device import BlockDevice, Limits
from imgtool.errors import Closed, ImageError
from imgtool.extent import Extent, Kind
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.bitmap_store import BitmapStore
from imgtool.formats.qcow2.cluster_map import ClusterMap
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.metadata import Metadata
from imgtool.formats.qcow2.options import SECTOR
from imgtool.formats.qcow2.overlap import Overlap
from imgtool.formats.qcow2.packing import Packer
from imgtool.formats.qcow2.schema import COMPRESSED, Compression, Crypt, Incompatible
from imgtool.formats.qcow2.tables import L2Tables
from imgtool.gate import Gate
from imgtool.storage.base import Storage
from imgtool.units import align_down, align_up

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Absent L2 tables that are passed over in one go; it takes about a millisecond.
_ABSENT = 1 << 14


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
        contents: Storage,
        backing: BlockDevice | None,
        fresh: bool,
    ) -> None:
        super().__init__(storage, header, l1, data=data, contents=contents, backing=backing)
        self._data: Storage = contents
        # Decoded clusters are not kept: their host cluster may come to hold something else.
        self._decoded = None
        # Nor is anything read past the mapping's lock.
        self._plain_entries = False
        self._lock = threading.RLock()
        self.gate = Gate()
        self._allocator = allocator
        self._use_tables(self._tables, fresh)
        self._bitmap_store: BitmapStore | None = None
        if not fresh and header.bitmaps is not None:
            self._bitmap_store = BitmapStore(self)
        self._failure: ImageError | None = None
        #: What is below counts for nothing, since it is about to be another image.
        self._own_zeros = False
        self._closed = False

    def _use_tables(self, tables: L2Tables, fresh: bool) -> None:
        self._tables = tables
        self.metadata = Metadata(
            self.storage,
            self.data or self.storage,
            self.header,
            tables,
            self._allocator,
            self.gate,
            fresh=fresh,
        )
        self.metadata.on_header = self._take_header
        self.clusters = ClusterMap(tables, self.metadata)
        self._packer = Packer(self.metadata)

    def _take_header(self, header: Header) -> None:
        self.header = header

    @property
    def limits(self) -> Limits:
        """Subclusters can be reserved alone in a new image; elsewhere clusters may have to move."""
        geometry = self.header.geometry
        fresh = self.metadata.unfinished
        return Limits(alignment=geometry.subcluster_size if fresh else geometry.cluster_size)

    @property
    def l1(self) -> array[int]:
        """The active L1 table."""
        return self._tables.l1

    # Reading beside writers

    def _read(self, offset: int, view: memoryview) -> None:
        with self.gate:
            super()._read(offset, view)

    def _map(
        self, offset: int, length: int, *, whole: bool = False, places: bool = True
    ) -> Iterator[Extent]:
        # One L2 table at a time, so that the lock is held briefly and the list stays short; those
        # that are absent before it cost next to nothing.
        coverage = self.header.geometry.l2_coverage
        end = offset + length
        last = (end - 1) // coverage
        while offset < end:
            with self.clusters.lock:
                first = offset // coverage
                there = self._tables.next_mapped(first, min(last, first + _ABSENT))
                stop = min(end, (there + 1) * coverage)
                extents = list(super()._map(offset, stop - offset, whole=whole, places=places))
            yield from extents
            offset = stop

    # Changing

    @property
    def bitmap_store(self) -> BitmapStore:
        """The persistent bitmaps, for changing; what is changed is stored when the disk closes."""
        if self._bitmap_store is None:
            self._bitmap_store = BitmapStore(self)
        return self._bitmap_store

    def _note_write(self, offset: int, length: int) -> None:
        if self._bitmap_store is not None:
            self._bitmap_store.note_write(offset, length)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the write lock. A write that would hit metadata marks the image corrupt.

        The host's errors and ours leave a state in memory that can be flushed. What breaks in
        anywhere, such as Ctrl-C, need not: then what is on disk counts, as after a crash.
        """
        with self._lock:
            if self._closed:
                raise Closed(filename=self.name)
            if self._failure is not None:
                raise self._failure
            try:
                yield
            except Overlap as error:
                self._failure = error.in_file(self.name)
                if self.header.version >= 3:
                    corrupt = self.header.incompatible | Incompatible.CORRUPT
                    self.metadata.switch_header(self.header._replace(incompatible=corrupt))
                raise self._failure from None
            except (OSError, ImageError):
                raise
            except BaseException:
                self._failure = ImageError(
                    "A change was broken off, and what had not been flushed is lost: open it again",
                    filename=self.name,
                )
                raise

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Change the image as a whole: no writer beside it, and readers only of what stays."""
        with self._changing():
            yield

    def _reserve(self, offset: int, length: int) -> list[Extent]:
        with self._changing():
            self._note_write(offset, length)
            self._flush_if_crowded()
            return list(self._reserve_runs(offset, length))

    def _reserve_runs(self, offset: int, length: int) -> Iterator[Extent]:
        geometry = self.header.geometry
        end = offset + length
        while offset < end:
            stop = min(end, align_down(offset, geometry.l2_coverage) + geometry.l2_coverage)
            if self.header.has_data_file:
                # In an external data file a cluster's place is its guest offset.
                host = offset
            elif (kept := self.clusters.kept_run(offset, stop)) is not None:
                host, stop = kept
                self._check_in_place(host, stop - offset)
                if not self.metadata.unfinished:
                    # Readers may have found data there before it was made zeros: they are not to
                    # see what others do not see before it is linked.
                    with self.gate.drained():
                        pass
            else:
                # The L2 table comes first, so that it lies in front of the data it maps.
                self.metadata.l2_table(offset // geometry.l2_coverage)
                stop = self.clusters.first_kept(offset, stop)
                start = align_down(offset, geometry.cluster_size)
                host, count = self._allocator.allocate(geometry.clusters(stop - start))
                stop = min(stop, start + (count << geometry.cluster_bits))
                if geometry.extended_l2 and self.metadata.unfinished:
                    # In a new image the parts of a cluster are reserved one by one.
                    self.clusters.give_clusters(start, host, count)
                host += offset - start
            yield Extent(offset, stop - offset, Kind.DATA, self._data, host)
            offset = stop

    def _link(self, extents: Iterable[Extent]) -> None:
        with self._changing():
            for extent in extents:
                self.clusters.link(extent)

    def _check_in_place(self, host: int, length: int) -> None:
        guard = self._allocator.guard
        if guard is not None and self.data is self.storage:
            guard.check(host, length)

    # Writing

    def _write(self, offset: int, view: memoryview) -> None:
        with self._changing():
            self._note_write(offset, len(view))
            self._write_runs(offset, view)
            self._flush_if_crowded()

    def _write_runs(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            here = offset + done
            host, stop = self._uniform_run(here, offset + len(view))
            part = view[done : done + stop - here]
            done += len(part)
            if host is not None:
                self._check_in_place(host, len(part))
                self._data.write_at(host, part)
            else:
                self._write_new(here, part)

    def _uniform_run(self, offset: int, end: int) -> tuple[int | None, int]:
        """Host offset of what can be overwritten in place (None: nothing), and where that ends."""
        geometry = self.header.geometry
        size = geometry.subcluster_size
        host = self.clusters.in_place(offset)
        stop = align_down(offset, size) + size
        if host is None and geometry.extended_l2:
            end = min(end, align_down(offset, geometry.cluster_size) + geometry.cluster_size)
        while stop < end:
            following = self.clusters.in_place(stop)
            if (host is None) != (following is None):
                break
            if host is not None and following != host + stop - offset:
                break
            stop += size
        return host, min(stop, end)

    def _write_new(self, offset: int, part: memoryview) -> None:
        """Write what has no place of its own yet, with copies of what surrounds it."""
        geometry = self.header.geometry
        whole = self.clusters.moves_whole(offset)
        granularity = geometry.cluster_size if whole else geometry.subcluster_size
        start = align_down(offset, granularity)
        end = align_up(offset + len(part), granularity)
        head = self._old(start, offset - start)
        tail = self._old(offset + len(part), end - offset - len(part))
        pieces = _in_whole_sectors(offset, head, part, tail)
        extents: list[Extent] = []
        try:
            extents.extend(self._reserve_runs(start, end - start))
            for extent in extents:
                assert extent.host_offset is not None
                for begin, piece in pieces:
                    low, high = max(begin, extent.offset), min(begin + len(piece), extent.end)
                    if low < high:
                        self._data.write_at(
                            extent.host_offset + low - extent.offset,
                            piece[low - begin : high - begin],
                        )
        except OSError:
            self._give_back(extents)
            raise
        for extent in extents:
            self.clusters.link(extent)

    def _give_back(self, extents: list[Extent]) -> None:
        """Let go of host clusters that were taken and are not linked."""
        size = self.header.geometry.cluster_size
        if self.header.has_data_file or self.metadata.unfinished:
            return
        for extent in extents:
            assert extent.host_offset is not None
            host = align_down(extent.host_offset, size)
            if self.clusters.kept_host(extent.offset) != host:
                count = self.header.geometry.clusters(extent.host_offset + extent.length - host)
                self.metadata.let_go(host, count, discard=True)

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
        whole_end = align_down(end, granularity) if end < self._size else align_up(end, granularity)
        whole = align_up(offset, granularity)
        with self._changing():
            self._note_write(offset, length)
            if whole >= whole_end:
                self._write_zero_bytes(offset, end)
            else:
                self._write_zero_bytes(offset, whole)
                self._zero_clusters(whole, whole_end, unmap)
                self._write_zero_bytes(whole_end, end)
            self._flush_if_crowded()

    def _write_zero_bytes(self, offset: int, end: int) -> None:
        """Write zeros as data, at most a cluster's part at either end of a range."""
        end = min(end, self._size)
        if offset < end and not self._reads_zero(offset, end):
            self._write_runs(offset, memoryview(bytes(end - offset)))

    def _reads_zero(self, offset: int, end: int) -> bool:
        return not self._own_zeros and all(
            extent.reads_zero for extent in self._extents(offset, end - offset)
        )

    @property
    def _shows_below(self) -> bool:
        """Whether what is unallocated may hold something else than zeros, now or soon."""
        return self._backing is not None or self._own_zeros

    def _zero_clusters(self, offset: int, end: int, unmap: bool) -> None:
        """Make whole subclusters zero, one L2 table after the other."""
        coverage = self.header.geometry.l2_coverage
        while offset < end:
            stop = min(end, align_down(offset, coverage) + coverage)
            if self.header.data_file_raw:
                self._data.write_zeroes(offset, min(stop, self._size) - offset, unmap=unmap)
            if self._shows_below or self.clusters.has_table(offset):
                self._zero_in_table(offset, stop, unmap)
                self._flush_if_crowded()
            offset = stop

    def _zero_in_table(self, offset: int, end: int, unmap: bool) -> None:
        size = self.header.geometry.cluster_size
        below = self._shows_below
        if below and self.header.version < 3:
            # There is no zero flag, so over the backing image zeros are data like any other.
            shown = end
            if self._backing is not None and not self._own_zeros:
                shown = min(end, align_up(self._backing.size, size))
            for cluster in range(offset, shown, size):
                self._write_zero_bytes(cluster, cluster + size)
                self._flush_if_crowded()
            offset, below = max(offset, shown), False
        start, stop = align_up(offset, size), align_down(end, size)
        if start > stop:
            self._zero_subclusters(offset, end)
            return
        self._zero_subclusters(offset, start)
        if start < stop:
            self.clusters.make_zero(start, stop, unmap=unmap, backed=below)
        self._zero_subclusters(stop, end)

    def _zero_subclusters(self, offset: int, end: int) -> None:
        """Make a part of one cluster zero."""
        if offset >= end:
            return
        entry, bitmap = self.clusters.entry(offset)
        if entry & COMPRESSED:
            self._write_zero_bytes(offset, end)
        elif entry or bitmap or self._shows_below:
            self.clusters.make_subclusters_zero(offset, end)

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
        if self.header.has_data_file or self.header.crypt_method is not Crypt.NONE:
            return 0
        return self.header.geometry.cluster_size

    def encode(self, data: ReadableBuffer, level: int | None = None) -> list[bytes | None]:
        from imgtool import codecs

        size, view = self.header.geometry.cluster_size, memoryview(data)
        clusters = [view[start : start + size] for start in range(0, len(view), size)]
        if self.header.compression is Compression.ZSTD:
            encoded = codecs.zstd_compress_all(clusters, level)
        else:
            encoded = [codecs.deflate(cluster, level) for cluster in clusters]
        return [piece if len(piece) < size else None for piece in encoded]

    def write_encoded(self, offset: int, encoded: Sequence[bytes]) -> None:
        """Pack the clusters ``encoded``, each behind the one before it."""
        geometry = self.header.geometry
        length = min(len(encoded) << geometry.cluster_bits, self._size - offset)
        self._check_write(offset, max(1, length))
        with self._changing():
            self._note_write(offset, length)
            self._flush_if_crowded()
            places: list[tuple[int, int]] = []
            try:
                for number, piece in enumerate(encoded):
                    cluster = offset + (number << geometry.cluster_bits)
                    # The L2 table comes first, so that it lies in front of the data it maps.
                    self.metadata.l2_table(cluster // geometry.l2_coverage)
                    places.append((self._packer.place(len(piece)), len(piece)))
                self._write_packed(places, encoded)
            except OSError:
                for host, taken in places:
                    self.clusters.release_compressed(host, taken)
                raise
            self.clusters.link_compressed(offset, places)

    def _write_packed(self, places: list[tuple[int, int]], encoded: Sequence[bytes]) -> None:
        """Write ``encoded`` to its places, those that follow each other with one request."""
        first = 0
        for number, (host, length) in enumerate(places, 1):
            if number == len(places) or places[number][0] != host + length:
                self.storage.write_at(places[first][0], b"".join(encoded[first:number]))
                first = number

    # The image as a whole

    def switch_l1(self, l1: array[int], offset: int, size: int) -> None:
        """Make ``l1``, durable at host ``offset``, the active table of a disk of ``size`` bytes."""
        header = self.header._replace(l1_table_offset=offset, l1_size=len(l1), size=size)
        self.metadata.switch_header(header)
        with self.clusters.lock:
            self._tables.use(l1)
            self._size = size

    @property
    def allocator(self) -> Allocator:
        """Where host clusters come from."""
        return self._allocator

    def use_allocator(self, allocator: Allocator) -> None:
        """Take host clusters from another allocator, the header naming its table already."""
        allocator.guard = self._allocator.guard
        self._allocator = allocator
        self._use_tables(self._tables, fresh=False)

    def own_extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What this image itself maps of a range, whatever lies below it."""
        return self._map(offset, length)

    def unallocate(self, offset: int, length: int) -> None:
        """Leave whole clusters to what is below, or to zeros."""
        with self._changing():
            for cluster in range(offset, offset + length, self.header.geometry.cluster_size):
                if any(self.clusters.entry(cluster)):
                    self.clusters.unallocate(cluster)
            self._flush_if_crowded()

    def allocate_zeroes(self, offset: int, length: int) -> None:
        """Back whole clusters with host clusters that hold zeros."""
        with self._changing():
            extents = list(self._reserve_runs(offset, length))
            for extent in extents:
                assert extent.host_offset is not None
                size = align_up(extent.length, self.header.geometry.cluster_size)
                self._data.write_zeroes(extent.host_offset, size)
            for extent in extents:
                self.clusters.link(extent)
            self._flush_if_crowded()

    def forget_tables(self) -> None:
        """Read L2 tables anew: they have been changed where they lie."""
        with self.clusters.lock:
            self._tables.use(self._tables.l1)

    def set_size(self, size: int) -> None:
        """Let readers and writers see another size; the header is the caller's to change."""
        self._size = size

    def _resize(self, size: int, preallocation: str) -> None:
        from imgtool.formats.qcow2.resize import resize

        resize(self, size, preallocation)

    def change_backing(self, name: str | None, format: str | None) -> None:
        from imgtool.formats.qcow2.backing import change_backing

        change_backing(self, name, format)

    def expect_other_backing(self) -> None:
        self._own_zeros = True

    def make_empty(self) -> None:
        from imgtool.formats.qcow2.emptying import make_empty

        make_empty(self)

    def reclaimable(self) -> Iterator[Extent]:
        from imgtool.formats.qcow2.reclaiming import reclaimable

        return reclaimable(self)

    def reclaim(self, offset: int, length: int) -> None:
        geometry = self.header.geometry
        if self.header.has_data_file:
            # A place of its own is kept for each cluster there: a hole in the file will do.
            self._data.write_zeroes(offset, length, unmap=True)
            return
        # Nothing changes for the guest, so bitmaps are not told.
        with self._changing():
            start, end = align_up(offset, geometry.cluster_size), offset + length
            # The last cluster counts as whole if the disk ends in it.
            rounded = align_down if end < self._size else align_up
            self._zero_clusters(start, rounded(end, geometry.cluster_size), True)

    def trim(self) -> None:
        from imgtool.formats.qcow2.reclaiming import trim

        trim(self)

    def create_snapshot(self, name: str) -> None:
        from imgtool.formats.qcow2.snapshot_changes import create_snapshot

        create_snapshot(self, name)

    def apply_snapshot(self, wanted: str) -> None:
        from imgtool.formats.qcow2.snapshot_changes import apply_snapshot

        apply_snapshot(self, wanted)

    def delete_snapshot(self, name: str) -> None:
        from imgtool.formats.qcow2.snapshot_changes import delete_snapshot

        delete_snapshot(self, name)

    def _flush_if_crowded(self) -> None:
        self.metadata.flush_if_crowded()

    def _flush(self) -> None:
        with self._changing():
            self.metadata.flush()

    def finish(self) -> None:
        """Write out everything that has changed, and then the header, which makes it an image."""
        with self._changing():
            if self._bitmap_store is not None:
                self._bitmap_store.store()
            self.metadata.flush()
            self.metadata.finish()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                if not self.metadata.unfinished and self._failure is None:
                    with self._changing():
                        if self._bitmap_store is not None:
                            self._bitmap_store.store()
                        self.metadata.flush()
            finally:
                # Nothing may be written behind the last flush.
                self._closed = True
                super().close()
            if self._failure is not None and self.metadata.waiting and not _interrupted():
                # Somebody has let the failure pass, and takes earlier writes for stored.
                raise self._failure


def _interrupted() -> bool:
    """Whether Ctrl-C or the like is on its way through the caller, who need not be told more."""
    going = sys.exc_info()[1]
    return going is not None and not isinstance(going, Exception)


def _in_whole_sectors(
    offset: int, head: memoryview, part: memoryview, tail: memoryview
) -> tuple[tuple[int, memoryview], ...]:
    """Cut what lies around ``offset`` into pieces, by guest offset, that share no sector.

    Something may show there already, in a data file for instance: it sees each sector change once.
    """
    start, end = offset - len(head), offset + len(part)
    first, last = align_up(offset, SECTOR), align_down(end, SECTOR)
    if first >= last:
        return ((start, memoryview(b"".join((head, part, tail)))),)
    return (
        (start, memoryview(b"".join((head, part[: first - offset])))),
        (first, part[first - offset : last - offset]),
        (last, memoryview(b"".join((part[last - offset :], tail)))),
    )
