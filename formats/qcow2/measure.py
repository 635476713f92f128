"""How large a qcow2 file will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgtool.device import StoredBitmap
from imgtool.extent import Extent
from imgtool.format import Measurement
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import os_bytes
from imgtool.formats.qcow2.options import CreateOptions
from imgtool.units import align_up, div_round_up


def measure(
    size: int,
    options: Mapping[str, Any],
    extents: Iterable[Extent] | None,
    bitmaps: Sequence[StoredBitmap] | None = None,
) -> Measurement:
    """Predict the file size of a new image; see :class:`imgtool.format.Measure`."""
    chosen = CreateOptions.from_mapping(size, options)
    geometry = chosen.geometry
    full_size = align_up(chosen.size, geometry.cluster_size)
    metadata = _metadata_bytes(geometry, full_size)
    metadata += chosen.luks_clusters * geometry.cluster_size
    # What is preallocated is needed at once; and of an overlay nobody knows what it will share
    # with its backing image.
    if chosen.preallocation in ("falloc", "full") or chosen.backing_file is not None:
        data = full_size
    else:
        data = 0 if extents is None else _data_bytes(geometry, extents)
    return Measurement(
        required=metadata + data,
        fully_allocated=metadata + full_size,
        bitmaps=None
        if bitmaps is None or chosen.version < 3
        else sum(_bitmap_bytes(geometry, chosen.size, bitmap) for bitmap in bitmaps)
        + align_up(sum(map(_directory_bytes, bitmaps)), geometry.cluster_size),
    )


def _metadata_bytes(geometry: Geometry, full_size: int) -> int:
    """Header, tables and refcounts of an image of which every cluster is allocated."""
    cluster_size = geometry.cluster_size
    l2_clusters = geometry.l1_entries(full_size)
    clusters = 1 + l2_clusters + geometry.clusters(l2_clusters * 8)
    counted = clusters + geometry.clusters(full_size)
    # The refcount structures count themselves, too.
    blocks = table = 0
    while True:
        needed = div_round_up(counted + blocks + table, geometry.refcount_block_entries)
        needed_table = geometry.clusters(needed * 8)
        if (needed, needed_table) == (blocks, table):
            return (clusters + blocks + table) * cluster_size
        blocks, table = needed, needed_table


def _data_bytes(geometry: Geometry, extents: Iterable[Extent]) -> int:
    """The clusters that hold anything that is not known to be zero."""
    clusters = done = 0
    for extent in extents:
        if not extent.reads_zero:
            first = max(done, extent.offset >> geometry.cluster_bits)
            done = geometry.clusters(extent.end)
            clusters += done - first
    return clusters * geometry.cluster_size


def _bitmap_bytes(geometry: Geometry, size: int, bitmap: StoredBitmap) -> int:
    """The data of a bitmap, and the table that says where it lies."""
    data = div_round_up(div_round_up(size, bitmap.granularity), 8)
    clusters = geometry.clusters(data)
    return (clusters + geometry.clusters(clusters * 8)) * geometry.cluster_size


def _directory_bytes(bitmap: StoredBitmap) -> int:
    return align_up(schema.BITMAP_HEAD.sizeof() + len(os_bytes(bitmap.name)), 8)
