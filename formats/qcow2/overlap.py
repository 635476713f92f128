"""Which host clusters hold metadata, so that nothing else is ever written over them.

Nor are they free because a guest cluster that lay there has gone. Only an image whose refcounts are
wrong can make either happen: a cluster in use that is counted as free, or an L2 entry that points
at a table. Source: SAFETY's nine classes of overlap, which are those that QEMU checks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Up to here sorting Python's integers costs less memory and time than numpy.
LOOPED_ENTRIES = 1 << 16


class MetadataMap:
    """The clusters that held metadata when the image was opened, and those taken for it since."""

    def __init__(self, geometry: Geometry) -> None:
        self._bits = geometry.cluster_bits
        self._starts, self._ends = array("Q"), array("Q")
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
        clusters = [
            (offset >> chosen._bits, (offset >> chosen._bits) + geometry.clusters(length))
            for offset, length in metadata_ranges(header, snapshots, bitmaps)
        ]
        tables = ((l1, L1_OFFSET_MASK), (refcount_table, REFCOUNT_OFFSET_MASK))
        join = _join if len(l1) + len(refcount_table) <= LOOPED_ENTRIES else _join_many
        chosen._starts, chosen._ends = join(clusters, tables, chosen._bits)
        return chosen

    @property
    def nbytes(self) -> int:
        """The memory that the ranges take, as the image is opened."""
        return 16 * len(self._starts)

    def check(self, offset: int, length: int) -> None:
        """Raise :class:`CorruptImage` if a range of the host file holds metadata."""
        held = self.first_held(offset >> self._bits, ((offset + length - 1) >> self._bits) + 1)
        if held is not None:
            raise Overlap(held << self._bits)

    def first_held(self, first: int, end: int) -> int | None:
        """The index of the first cluster from ``first`` up to ``end`` that holds metadata."""
        place = bisect_right(self._ends, first)
        found = None
        if place < len(self._ends) and self._starts[place] < end:
            found = end = max(first, self._starts[place])
        if self._added:
            if end - first < len(self._added):
                added = [index for index in range(first, end) if index in self._added]
            else:
                added = [index for index in self._added if first <= index < end]
            found = min(added, default=found)
        return found

    def held_many(self, indexes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Say of each of many clusters whether it holds metadata."""
        import numpy as np

        held = np.zeros(len(indexes), np.bool_)
        if self._ends:
            places = np.searchsorted(np.frombuffer(self._ends, np.uint64), indexes, side="right")
            inside = places < len(self._ends)
            starts = np.frombuffer(self._starts, np.uint64)[places[inside]]
            held[inside] = starts <= indexes[inside]
        if self._added:
            added = (index in self._added for index in indexes.tolist())
            held |= np.fromiter(added, np.bool_, len(indexes))
        return held

    @property
    def end(self) -> int:
        """The index of the first cluster behind all that hold metadata."""
        return max(self._ends[-1] if self._ends else 0, max(self._added, default=-1) + 1)

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
        low = bisect_right(self._ends, first)
        high = bisect_left(self._starts, end, low)
        if low < high:
            before = (self._starts[low], first)
            after = (end, self._ends[high - 1])
            kept = [part for part in (before, after) if part[0] < part[1]]
            self._starts[low:high] = array("Q", [start for start, _ in kept])
            self._ends[low:high] = array("Q", [stop for _, stop in kept])


def metadata_ranges(
    header: Header, snapshots: list[Snapshot], bitmaps: list[Bitmap]
) -> list[tuple[int, int]]:
    """What metadata there is but L2 tables and refcount blocks: host offsets and bytes.

    Snapshots may share an L1 table, as they share all that it refers to: it is told of once.
    """
    cluster_size = header.geometry.cluster_size
    found = [
        (0, cluster_size),
        (header.refcount_table_offset, header.refcount_table_clusters * cluster_size),
        (header.l1_table_offset, header.l1_size * 8),
        (header.snapshots_offset, sum(snapshot.size_on_disk for snapshot in snapshots)),
    ]
    found += dict.fromkeys((one.l1_table_offset, one.l1_size * 8) for one in snapshots)
    found += [(bitmap.table_offset, bitmap.table_size * 8) for bitmap in bitmaps]
    if header.bitmaps is not None:
        found.append((header.bitmaps.directory_offset, header.bitmaps.directory_size))
    if header.luks_header is not None:
        found.append(header.luks_header)
    return [(offset, length) for offset, length in found if length]


def _join(
    ranges: list[tuple[int, int]], tables: Sequence[tuple[array[int], int]], bits: int
) -> tuple[array[int], array[int]]:
    """Join ranges of clusters, and the clusters that tables name, where they meet or overlap."""
    named = {(entry & mask) >> bits for table, mask in tables for entry in table}
    starts, ends = array("Q"), array("Q")
    for start, end in sorted([*ranges, *((cluster, cluster + 1) for cluster in named)]):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends


def _join_many(
    ranges: list[tuple[int, int]], tables: Sequence[tuple[array[int], int]], bits: int
) -> tuple[array[int], array[int]]:
    """The same for tables of millions of entries, which as Python's integers were gigabytes."""
    import numpy as np

    # Each array is let go as soon as it can be: they are as large as the tables.
    count = sum(len(table) for table, _ in tables)
    starts = np.empty(len(ranges) + count, np.uint64)
    ends = np.empty(len(ranges) + count, np.uint64)
    starts[: len(ranges)] = [start for start, _ in ranges]
    ends[: len(ranges)] = [end for _, end in ranges]
    place = len(ranges)
    for table, mask in tables:
        named = starts[place : place + len(table)]
        np.bitwise_and(np.frombuffer(table, np.uint64), np.uint64(mask), out=named)
        named >>= np.uint64(bits)
        np.add(named, np.uint64(1), out=ends[place : place + len(table)])
        place += len(table)
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    ends = ends[order]
    del order
    np.maximum.accumulate(ends, out=ends)
    begins = np.append(True, starts[1:] > ends[:-1])
    starts = starts[begins]
    ends = ends[np.append(begins[1:], True)]
    return to_array(starts), to_array(ends)


def to_array(numbers: NDArray[np.uint64]) -> array[int]:
    """The same numbers, which as Python's integers would take several times the memory."""
    made = array("Q")
    made.frombytes(numbers.data.cast("B"))
    return made


class Overlap(CorruptImage):
    """A write would have hit metadata at a host offset."""

    def __init__(self, offset: int) -> None:
        super().__init__("A write would have overwritten the image's metadata: check it", offset)
