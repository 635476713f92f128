"""Metadata that lies upon other metadata, or past the end. An image like that is not written to.

:mod:`~imgtool.formats.qcow2.overlap` keeps data from being written over metadata; but a table that
is itself where another lies overwrites that with every entry that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def collision(
    file_size: int,
    header: Header,
    l1: array[int],
    refcount_table: array[int],
    snapshots: list[Snapshot],
    bitmaps: list[Bitmap],
) -> int | None:
    """The host offset at which two pieces of metadata meet, or None if none do.

    Or of a piece that ends a cluster or more past the end of the file, of ``file_size`` bytes.

    The active L2 tables and the refcount blocks may be millions; the rest are ranges. L2 tables of
    snapshots are left out: they may well be active ones.
    """
    import numpy as np

    bits = header.geometry.cluster_bits
    # A bitmap that lies past the end can be removed; until then nothing is written where it is.
    held = file_size + header.geometry.cluster_size
    bitmaps = [one for one in bitmaps if one.table_offset + one.table_size * 8 <= held]
    clusters = _clusters(l1, refcount_table, bits)
    found = clusters[1:][clusters[1:] == clusters[:-1]][:1].tolist()
    reached, past = -1, (file_size + header.geometry.cluster_size) >> bits
    for first, last in sorted(
        (offset >> bits, (offset + length - 1) >> bits)
        for offset, length in _ranges(header, snapshots, bitmaps)
    ):
        place = np.searchsorted(clusters, np.uint64(first))
        found += [int(cluster) for cluster in clusters[place : place + 1] if cluster <= last]
        if first <= reached or last > past:
            found.append(first)
        reached = max(reached, last)
    return min(found) << bits if found else None


def _clusters(l1: array[int], refcount_table: array[int], bits: int) -> NDArray[np.uint64]:
    """The clusters of L2 tables and of refcount blocks, in order; care is taken of memory."""
    import numpy as np

    tables = np.array(l1, np.uint64)
    # Several entries may share a table that none of them may change where it lies.
    own = (tables & np.uint64(COPIED)) != 0
    tables &= np.uint64(L1_OFFSET_MASK)
    shared = np.unique(tables[~own])
    tables = tables[own]
    blocks = np.array(refcount_table, np.uint64) & np.uint64(REFCOUNT_OFFSET_MASK)
    clusters = np.concatenate((tables, shared, blocks))
    clusters >>= np.uint64(bits)
    clusters.sort()
    # No entry, or none that could be used.
    named: NDArray[np.uint64] = clusters[np.searchsorted(clusters, np.uint64(1)) :]
    return named


def _ranges(
    header: Header, snapshots: list[Snapshot], bitmaps: list[Bitmap]
) -> Iterator[tuple[int, int]]:
    """What metadata there is but L2 tables and refcount blocks: host offsets and bytes."""
    cluster_size = header.geometry.cluster_size
    found = [
        (0, cluster_size),
        (header.refcount_table_offset, header.refcount_table_clusters * cluster_size),
        (header.l1_table_offset, header.l1_size * 8),
        (header.snapshots_offset, sum(snapshot.size_on_disk for snapshot in snapshots)),
    ]
    found += [(snapshot.l1_table_offset, snapshot.l1_size * 8) for snapshot in snapshots]
    found += [(bitmap.table_offset, bitmap.table_size * 8) for bitmap in bitmaps]
    if header.bitmaps is not None:
        found.append((header.bitmaps.directory_offset, header.bitmaps.directory_size))
    if header.luks_header is not None:
        found.append(header.luks_header)
    return ((offset, length) for offset, length in found if length)
