"""Metadata that lies upon other metadata, or past the end. An image like that is not written to.

:mod:`~imgtool.formats.qcow2.overlap` keeps data from being written over metadata; but a table that
is itself where another lies overwrites that with every entry that changes.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left

from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.overlap import LOOPED_ENTRIES, metadata_ranges, to_array
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.formats.qcow2.snapshots import Snapshot


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
    bits = header.geometry.cluster_bits
    # A bitmap that lies past the end can be removed; until then nothing is written where it is.
    held = file_size + header.geometry.cluster_size
    bitmaps = [one for one in bitmaps if one.table_offset + one.table_size * 8 <= held]
    collect = _clusters if len(l1) + len(refcount_table) <= LOOPED_ENTRIES else _many_clusters
    clusters, twice = collect(l1, refcount_table, bits)
    found = [] if twice is None else [twice]
    reached, past = -1, (file_size + header.geometry.cluster_size) >> bits
    for first, last in sorted(
        (offset >> bits, (offset + length - 1) >> bits)
        for offset, length in metadata_ranges(header, snapshots, bitmaps)
    ):
        place = bisect_left(clusters, first)
        found += [cluster for cluster in clusters[place : place + 1] if cluster <= last]
        if first <= reached or last > past:
            found.append(first)
        reached = max(reached, last)
    return min(found) << bits if found else None


def _clusters(
    l1: array[int], refcount_table: array[int], bits: int
) -> tuple[array[int], int | None]:
    """The clusters of L2 tables and of refcount blocks, in order, and one that is there twice."""
    # Several entries may share a table that none of them may change where it lies.
    own = [entry & L1_OFFSET_MASK for entry in l1 if entry & COPIED]
    shared = {entry & L1_OFFSET_MASK for entry in l1 if not entry & COPIED}
    blocks = (entry & REFCOUNT_OFFSET_MASK for entry in refcount_table)
    # No entry, or none that could be used, names cluster 0.
    named = sorted(offset >> bits for offset in itertools.chain(own, shared, blocks))
    clusters = array("Q", named[bisect_left(named, 1) :])
    pairs = itertools.pairwise(clusters)
    return clusters, next((one for one, following in pairs if one == following), None)


def _many_clusters(
    l1: array[int], refcount_table: array[int], bits: int
) -> tuple[array[int], int | None]:
    """The same for tables of millions of entries; care is taken of memory."""
    import numpy as np

    tables = np.array(l1, np.uint64)
    own = (tables & np.uint64(COPIED)) != 0
    tables &= np.uint64(L1_OFFSET_MASK)
    shared = np.unique(tables[~own])
    tables = tables[own]
    blocks = np.array(refcount_table, np.uint64) & np.uint64(REFCOUNT_OFFSET_MASK)
    clusters = np.concatenate((tables, shared, blocks))
    clusters >>= np.uint64(bits)
    clusters.sort()
    clusters = clusters[np.searchsorted(clusters, np.uint64(1)) :]
    twice = clusters[1:][clusters[1:] == clusters[:-1]][:1].tolist()
    return to_array(clusters), twice[0] if twice else None
