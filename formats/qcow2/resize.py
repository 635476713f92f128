"""Changing the virtual size: the header's goes last when the disk grows, first when it shrinks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.errors import BadOption, ImageError
from imgtool.formats.qcow2.emptying import drop_tables, tables_from
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES
from imgtool.formats.qcow2.options import SECTOR
from imgtool.schema.fields import big_endian_bytes
from imgtool.units import align_up

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2

#: Guest bytes mapped at a time.
_STEP = 1 << 30


def resize(device: WritableQcow2, size: int, preallocation: str = "off") -> None:
    """Make the disk ``size`` bytes long, a multiple of 512. What is added reads as zeros.

    Raises :class:`BadOption` for sizes that the format cannot hold, and :class:`ImageError` for
    version 2 images with snapshots, which do not record the size of their disk.
    """
    header = device.header
    if size % SECTOR:
        raise BadOption("The new size must be a multiple of 512", filename=device.name)
    if header.geometry.l1_entries(size) * 8 > MAX_L1_BYTES:
        raise BadOption(
            "The new size is too large for the cluster size of the image", filename=device.name
        )
    if device.snapshots and header.version < 3:
        raise ImageError("Can't resize a version 2 image which has snapshots", filename=device.name)
    if preallocation != "off" and size < device.size:
        raise BadOption("Preallocation can't be used for shrinking an image", filename=device.name)
    with device.exclusive():
        device.flush()
        # Nothing has been changed yet, should that be too much work.
        stored = tables_from(device, header.geometry.l1_entries(min(size, device.size)))
        # Those that were only just added are in no header yet.
        bitmaps = device.bitmap_store if len(device.bitmap_store) else None
        if bitmaps is not None:
            bitmaps.resize(size)
        if size < device.size:
            _shrink(device, size, stored)
        elif size > device.size:
            _grow(device, size, preallocation, stored)
        if bitmaps is not None:
            bitmaps.store()


def _grow(device: WritableQcow2, size: int, preallocation: str, stored: bytearray) -> None:
    old = device.size
    # The state of a machine lies behind the disk's end once its snapshot has been applied.
    _forget_behind_end(device, stored)
    _grow_l1(device, size)
    if device.header.has_data_file and device.data is not None:
        device.data.truncate(max(size, device.data.size()))
    device.set_size(size)
    # A cluster that the disk ended in may hold anything behind that end, and so may what is below.
    shown = align_up(old, device.header.geometry.cluster_size)
    if device.backing is not None:
        shown = max(shown, device.backing.size)
    if old < min(shown, size):
        device.write_zeroes(old, min(shown, size) - old, unmap=True)
    if preallocation != "off" or device.header.data_file_raw:
        _preallocate(device, align_up(old, device.header.geometry.cluster_size), preallocation)
    device.flush()
    device.metadata.switch_header(device.header._replace(size=size))


def _preallocate(device: WritableQcow2, start: int, preallocation: str) -> None:
    end = 0
    for offset in range(start, device.size, _STEP):
        extents = device.reserve(offset, min(_STEP, device.size - offset))
        for extent in extents:
            assert extent.storage is not None
            assert extent.host_offset is not None
            if preallocation == "full":
                extent.storage.preallocate(extent.host_offset, extent.length, full=True)
            else:
                # Clusters that were used before hold old data.
                extent.storage.write_zeroes(
                    extent.host_offset, extent.length, unmap=preallocation != "falloc"
                )
            end = max(end, extent.host_offset + extent.length)
        device.link(extents)
    if not device.header.has_data_file and end > device.storage.size():
        device.storage.truncate(end)


def _grow_l1(device: WritableQcow2, size: int) -> None:
    """Make the L1 table long enough, in another place, while the disk keeps its size."""
    header, metadata = device.header, device.metadata
    geometry = header.geometry
    needed = geometry.l1_entries(size)
    if needed <= header.l1_size:
        return
    l1 = device.l1[:]
    l1.extend([0] * (needed - len(l1)))
    clusters = geometry.clusters(needed * 8)
    offset = metadata.allocator.allocate_contiguous(clusters)
    data = big_endian_bytes(l1).ljust(clusters << geometry.cluster_bits, b"\0")
    device.storage.write_at(offset, data)
    metadata.flush()
    device.switch_l1(l1, offset, device.size)
    if header.l1_size:
        metadata.free_later(header.l1_table_offset, geometry.clusters(header.l1_size * 8))


def _shrink(device: WritableQcow2, size: int, stored: bytearray) -> None:
    device.metadata.switch_header(device.header._replace(size=size))
    device.set_size(size)
    # From here on what lies behind the end is never seen again, and goes back to the free.
    _forget_behind_end(device, stored)
    device.flush()
    if device.header.has_data_file and device.data is not None:
        device.data.truncate(size)


def _forget_behind_end(device: WritableQcow2, stored: bytearray) -> None:
    """Let go of the clusters behind the disk's end, and of the L2 tables, ``stored`` or not."""
    geometry = device.header.geometry
    first = geometry.l1_entries(device.size)
    end = first * geometry.l2_coverage
    for cluster in range(align_up(device.size, geometry.cluster_size), end, geometry.cluster_size):
        if any(device.clusters.entry(cluster)):
            device.clusters.unallocate(cluster)
    drop_tables(device, first, stored)
