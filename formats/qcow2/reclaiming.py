"""Giving back what a qcow2 image's file holds for nothing.

Only clusters that nobody references are given back, and what references them is taken away
durably first. That the refcounts are right is the caller's to know: check the image before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgtool.extent import Extent, Kind
from imgtool.formats.qcow2.emptying import trim_file
from imgtool.formats.qcow2.refcounts import blocks
from imgtool.formats.qcow2.references import spend_on, which_stored
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK, SUBCLUSTERS, ZERO_FLAG
from imgtool.formats.qcow2.tables import read_table

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2


def reclaimable(device: WritableQcow2) -> Iterator[Extent]:
    """What is mapped as data and shared with no snapshot.

    Version 2 has nothing that could hide a backing image, so there only what lies behind the end
    of that one can be given back.
    """
    start = 0
    if device.header.version < 3 and device.backing is not None:
        start = min(device.size, device.backing.size)
    for extent in device.extents(start):
        if extent.depth or extent.kind is not Kind.DATA:
            continue
        if device.snapshots:
            yield from _unshared(device, extent)
        else:
            yield extent


def _unshared(device: WritableQcow2, extent: Extent) -> Iterator[Extent]:
    step = device.header.geometry.cluster_size
    begin, offset = extent.offset, extent.offset
    while offset < extent.end:
        following = min(offset - offset % step + step, extent.end)
        if device.clusters.kept_host(offset) is None:
            if begin < offset:
                yield extent.clip(begin, offset)
            begin = following
        offset = following
    if begin < extent.end:
        yield extent.clip(begin, extent.end)


def trim(device: WritableQcow2) -> None:
    """Give back free clusters, and cut off those at the file's end.

    L2 tables that map nothing and refcount blocks that count nothing become free before.
    """
    with device.exclusive():
        device.flush()
        _drop_empty_tables(device)
        device.flush()
        _drop_empty_blocks(device)
        _punch_free_clusters(device)
        trim_file(device)


def _drop_empty_tables(device: WritableQcow2) -> None:
    metadata = device.metadata
    stored = which_stored(device.storage, device.header, device.l1)
    spend_on(device.storage, device.header, stored)
    dropped = False
    for l1_index, entry in enumerate(device.l1):
        offset = entry & L1_OFFSET_MASK
        if not offset or not entry & COPIED:
            continue
        if not stored[l1_index] or _maps_nothing(device, offset):
            metadata.set_l1_entry(l1_index, 0)
            metadata.free_later(offset, 1, discard=True)
            metadata.flush_if_crowded()
            dropped = True
    if dropped:
        metadata.flush()
        device.forget_tables()


def _maps_nothing(device: WritableQcow2, offset: int) -> bool:
    """Whether the disk would be the same without the L2 table at host ``offset``."""
    import numpy as np

    geometry = device.header.geometry
    # With nothing below, a zero cluster is the same as none at all.
    zero, zeros = 0, 0
    if device.header.backing_file is None:
        zero, zeros = ZERO_FLAG, ((1 << SUBCLUSTERS) - 1) << SUBCLUSTERS
    table = read_table(device.storage, offset, geometry.cluster_size // 8, "An L2 table")
    entries = np.frombuffer(table, dtype=np.uint64)
    if geometry.extended_l2:
        return not np.any(entries[::2]) and not np.any(entries[1::2] & np.uint64(~zeros & _64))
    return not np.any(entries & np.uint64(~zero & _64))


def _drop_empty_blocks(device: WritableQcow2) -> None:
    metadata = device.metadata
    dropped = -1
    while dropped != metadata.allocator.frees:
        dropped = metadata.allocator.frees
        for offset in metadata.allocator.drop_empty_blocks():
            metadata.free_later(offset, 1)
        metadata.flush()
        metadata.allocator.freed.clear()


_64 = (1 << 64) - 1


def _punch_free_clusters(device: WritableQcow2) -> None:
    """Make holes of all clusters in the file whose refcount is 0."""
    import numpy as np

    storage, bits = device.storage, device.header.geometry.cluster_bits
    size = storage.size()
    with device.gate.drained():
        for first, refcounts in blocks(storage, device.header):
            edges = np.flatnonzero(np.diff(refcounts == 0, prepend=False, append=False))
            for low, high in edges.reshape(-1, 2).tolist():
                start, end = (first + low) << bits, min((first + high) << bits, size)
                if start < end:
                    storage.discard(start, end - start)
