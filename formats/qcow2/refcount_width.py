"""Changing the width of refcounts: all refcount structures anew, switched by the header."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from imgtool.errors import ImageError
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.geometry import MAX_REFCOUNT_TABLE_BYTES, Geometry
from imgtool.formats.qcow2.refcounts import blocks, pack_block
from imgtool.formats.qcow2.schema import REFCOUNT_OFFSET_MASK
from imgtool.schema.fields import big_endian_bytes
from imgtool.units import div_round_up

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgtool.formats.qcow2.writable import WritableQcow2

    Counts = NDArray[np.unsignedinteger[Any]]


def change_refcount_width(
    device: WritableQcow2, order: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Give the image refcounts of ``1 << order`` bits. The caller holds the image exclusively.

    What :func:`judge_refcount_width` refuses has been refused before.
    """
    device.metadata.flush()
    old, header = device.allocator, device.header
    geometry = header.geometry._replace(refcount_order=order)
    bits = geometry.cluster_bits

    place, table_clusters, block_count = _take_room(old, geometry)
    device.metadata.flush()
    table = array("Q", bytes(table_clusters << bits))
    written = 0
    for number, counts in _regrouped(device, geometry):
        offset = place + ((table_clusters + written) << bits)
        device.storage.write_at(offset, pack_block(counts, order))
        table[number] = offset
        written += 1
        if progress is not None:
            progress(number, block_count)
    device.storage.write_at(place, big_endian_bytes(table))

    retired = [entry & REFCOUNT_OFFSET_MASK for entry in old.table]
    device.metadata.switch_header(
        header._replace(
            geometry=geometry,
            refcount_table_offset=place,
            refcount_table_clusters=table_clusters,
        )
    )
    device.use_allocator(Allocator(device.storage, geometry, table, place))
    metadata = device.metadata
    for offset in retired:
        if offset:
            metadata.free_later(offset, 1)
    metadata.free_later(header.refcount_table_offset, header.refcount_table_clusters)
    # Room that was taken for blocks that turned out to be all zeros.
    spare = block_count - written
    if spare:
        metadata.free_later(place + ((table_clusters + written) << bits), spare)
    metadata.flush()


def judge_refcount_width(device: WritableQcow2, order: int) -> None:
    """Say whether :func:`change_refcount_width` can do it, whose work is counted here.

    Raises :class:`ImageError` if a cluster has more references than the new width can count.
    """
    storage, geometry = device.storage, device.header.geometry._replace(refcount_order=order)
    existing = sum(1 for entry in device.allocator.table if entry & REFCOUNT_OFFSET_MASK)
    storage.account.spend(existing * (1 + (geometry.cluster_size >> 10)))
    for first, counts in blocks(storage, device.header):
        over = (counts > geometry.max_refcount).nonzero()[0]
        if len(over):
            cluster = first + int(over[0])
            raise ImageError(
                f"Cannot decrease refcount entry width to {geometry.refcount_bits} bits: Cluster "
                f"at offset {cluster << geometry.cluster_bits:#x} has a refcount of "
                f"{int(counts[over[0]])}"
            )


def _take_room(old: Allocator, geometry: Geometry) -> tuple[int, int, int]:
    """Take clusters that lie together for a new table and its blocks.

    Returns their host offset, how many the table takes, and how many the blocks take behind it.
    """
    slack = 2
    while True:
        block_count = div_round_up(old.end() + slack, geometry.refcount_block_entries) + slack
        table_clusters = div_round_up(block_count * 8, geometry.cluster_size)
        if table_clusters * geometry.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise ImageError("The refcount table would be larger than the format allows")
        wanted = table_clusters + block_count
        place = old.allocate_contiguous(wanted)
        if old.end() <= block_count * geometry.refcount_block_entries:
            return place, table_clusters, block_count
        # The new structures reach further than they count: give them back, and take more.
        old.change(place, wanted, -1)
        slack += wanted


def _regrouped(device: WritableQcow2, geometry: Geometry) -> Any:
    """The refcounts in blocks of the new width: ``(block number, counts)`` where any is not 0."""
    import numpy as np

    size = geometry.refcount_block_entries
    number, counts = -1, np.zeros(size, dtype=np.uint64)
    for first, old in blocks(device.storage, device.header):
        done = 0
        while done < len(old):
            here, slot = divmod(first + done, size)
            if here != number:
                if number >= 0 and counts.any():
                    yield number, counts.astype(_dtype(geometry))
                number, counts = here, np.zeros(size, dtype=np.uint64)
            step = min(len(old) - done, size - slot)
            counts[slot : slot + step] = old[done : done + step]
            done += step
    if number >= 0 and counts.any():
        yield number, counts.astype(_dtype(geometry))


def _dtype(geometry: Geometry) -> str:
    return f"u{max(1, geometry.refcount_bits // 8)}"
