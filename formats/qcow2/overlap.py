"""Which host clusters hold metadata, so that nothing else is ever written over them.

Only an image whose refcounts are wrong can make it happen: a cluster in use that is counted as
free, or an L2 entry that points at a table. Source: SAFETY's nine classes of overlap, which are
those that QEMU checks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot


class MetadataMap:
    """The clusters that held metadata when the image was opened, and those taken for it since."""

    def __init__(self, geometry: Geometry) -> None:
        self._bits = geometry.cluster_bits
        self._known = array("Q")
        self._added: set[int] = set()

    @classmethod
    def of_image(
        cls,
        header: Header,
        l1: array[int],
        refcount_table: array[int],
        snapshots: list[Snapshot],
        bitmaps: list[Bitmap],
    ) -> MetadataMap:
        """Collect header, refcount table and blocks, L1 and L2 tables, snapshots and bitmaps.

        L2 tables of snapshots are left out, as QEMU leaves them out by default: finding them means
        reading every snapshot's L1 table.
        """
        chosen = cls(header.geometry)
        geometry = header.geometry
        found = {0}
        found.update((entry & L1_OFFSET_MASK) >> chosen._bits for entry in l1)
        found.update((entry & REFCOUNT_OFFSET_MASK) >> chosen._bits for entry in refcount_table)
        ranges = [
            (header.refcount_table_offset, header.refcount_table_clusters * geometry.cluster_size),
            (header.l1_table_offset, header.l1_size * 8),
        ]
        ranges += [(snapshot.l1_table_offset, snapshot.l1_size * 8) for snapshot in snapshots]
        ranges += [(bitmap.table_offset, bitmap.table_size * 8) for bitmap in bitmaps]
        if header.snapshot_count:
            ranges.append((header.snapshots_offset, 1))
        if header.bitmaps is not None:
            ranges.append((header.bitmaps.directory_offset, header.bitmaps.directory_size))
        if header.luks_header is not None:
            ranges.append(header.luks_header)
        for offset, length in ranges:
            first = offset >> chosen._bits
            found.update(range(first, first + geometry.clusters(length)))
        chosen._known = array("Q", sorted(found))
        return chosen

    def check(self, offset: int, length: int) -> None:
        """Raise :class:`CorruptImage` if a range of the host file holds metadata."""
        first = offset >> self._bits
        end = ((offset + length - 1) >> self._bits) + 1
        place = bisect_left(self._known, first)
        if place < len(self._known) and self._known[place] < end:
            raise Overlap(self._known[place] << self._bits)
        if self._added and not self._added.isdisjoint(range(first, end)):
            raise Overlap(offset)

    def add(self, offset: int, clusters: int) -> None:
        """Take note of clusters that hold metadata from now on."""
        first = offset >> self._bits
        self._added.update(range(first, first + clusters))

    def forget(self, offset: int, clusters: int) -> None:
        """Take note that clusters are free, and may hold anything."""
        first = offset >> self._bits
        end = first + clusters
        if self._added:
            self._added.difference_update(range(first, end))
        low = bisect_left(self._known, first)
        high = bisect_left(self._known, end, low)
        if low < high:
            del self._known[low:high]


class Overlap(CorruptImage):
    """A write would have hit metadata at a host offset."""

    def __init__(self, offset: int) -> None:
        super().__init__("A write would have overwritten the image's metadata: check it", offset)
