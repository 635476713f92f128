"""Taking, applying and deleting internal snapshots.

Each change is switched by one write of the header: before it the image is as it was, after it as
it is to be. Around it refcounts change by the thousand, and the COPIED flags that go by them: an
image that can say so is marked dirty meanwhile, so that whoever opens it next after a crash makes
them agree. Version 2 has no such mark. There a crash can leave flags that lag behind: a check calls
them errors, but they only cost copies that need not be made. Source: the specification's
sections "Snapshots" and, for the COPIED flags, "Cluster mapping".
"""

from __future__ import annotations

import contextlib
import itertools
import time
from array import array
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from imgtool.errors import BadOption, CorruptImage, ImageError
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES
from imgtool.formats.qcow2.guarding import afford_to_look_again, look_again
from imgtool.formats.qcow2.header import MAX_SNAPSHOTS, os_bytes
from imgtool.formats.qcow2.references import referenced, spend_on, which_stored
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    Incompatible,
)
from imgtool.formats.qcow2.snapshots import (
    MAX_TABLE_BYTES,
    Snapshot,
    find_snapshot,
    read_snapshots,
    table_entry,
)
from imgtool.formats.qcow2.tables import read_l1, read_table
from imgtool.schema.fields import big_endian_bytes
from imgtool.units import MAX_SIZE

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2


#: The format has room for more; QEMU sees no more than this of a name.
MAX_NAME_BYTES = 255


def create_snapshot(device: WritableQcow2, name: str) -> Snapshot:
    """Take a snapshot of the disk as it is now, and return it.

    Raises :class:`BadOption` for names that the format cannot hold, and :class:`ImageError` where
    the refcounts are too narrow to share clusters.
    """
    if len(os_bytes(name)) > MAX_NAME_BYTES:
        raise BadOption(f"A snapshot's name has at most {MAX_NAME_BYTES} bytes")
    with device.exclusive():
        _refuse_data_file(device)
        if len(device.snapshots) >= MAX_SNAPSHOTS:
            raise ImageError(f"The image has {MAX_SNAPSHOTS} snapshots, the most it can have")
        device.flush()
        stored = _afford(device, device.l1)
        with _marked_dirty(device):
            return _create(device, name, stored)


def _create(device: WritableQcow2, name: str, stored: bytearray) -> Snapshot:
    metadata = device.metadata
    l1 = device.l1
    # Everything is counted twice first: then nothing that is shared is written in place.
    _count_again(device, l1, stored)
    metadata.flush()
    _mark_copied(device)
    offset = _write_l1_copy(device, l1)
    now = time.time_ns()
    snapshot = Snapshot(
        raw_id=_next_id(device.snapshots),
        raw_name=os_bytes(name),
        l1_table_offset=offset,
        l1_size=len(l1),
        date_sec=now // 1_000_000_000 & 0xFFFFFFFF,
        date_nsec=now % 1_000_000_000,
        vm_clock_nsec=0,
        vm_state_size=0,
        disk_size=device.size,
        # The guest has not run: qemu-img, too, records none of its instructions.
        icount=0,
        extra_data=b"",
    )
    _switch_table(device, [*device.snapshots, snapshot])
    return snapshot


def apply_snapshot(device: WritableQcow2, wanted: str) -> None:
    """Make the disk what it was when the snapshot with this id or name was taken."""
    with device.exclusive():
        _refuse_data_file(device)
        snapshot = _find(device, {"snapshot": wanted})
        if len(device.bitmap_store):
            raise ImageError(
                "Device has active dirty bitmaps; they would not be true of what was: "
                "remove them first",
                filename=device.name,
            )
        device.flush()
        size = device.header.size if snapshot.disk_size is None else snapshot.disk_size
        device.storage.account.check_virtual_size(size)
        if size > MAX_SIZE or device.header.geometry.l1_entries(size) * 8 > MAX_L1_BYTES:
            raise CorruptImage(
                f"The disk size {size} of the snapshot is too large", filename=device.name
            )
        l1 = _l1_of(device, snapshot)
        stored, old_stored = _afford(device, l1), _afford(device, device.l1)
        afford_to_look_again(device, l1)
        with _marked_dirty(device):
            _count_again(device, l1, stored)
            _apply(device, l1, size, old_stored)


def _apply(device: WritableQcow2, l1: array[int], size: int, old_stored: bytearray) -> None:
    """Make a snapshot's tables, which have been counted once more, those of the disk."""
    metadata, header = device.metadata, device.header
    needed = max(header.geometry.l1_entries(size), len(l1), 1)
    active = array("Q", [entry & ~COPIED for entry in l1])
    active.extend([0] * (needed - len(active)))
    offset = _write_l1_copy(device, active)
    old, old_offset = device.l1, header.l1_table_offset
    device.switch_l1(active, offset, size)
    look_again(device)
    with device.gate.drained():
        _let_go(device, old, old_stored)
    metadata.free_later(old_offset, header.geometry.clusters(len(old) * 8))
    _mark_copied(device)


def delete_snapshot(device: WritableQcow2, name: str) -> None:
    """Remove the first snapshot of this name; what only it held becomes free."""
    with device.exclusive():
        _refuse_data_file(device)
        snapshot = _find(device, {"snapshot.name": name})
        device.flush()
        l1 = _l1_of(device, snapshot)
        stored = _afford(device, l1)
        afford_to_look_again(device, device.l1)
        with _marked_dirty(device):
            _switch_table(device, [other for other in device.snapshots if other is not snapshot])
            _let_go(device, l1, stored)
            if l1:
                clusters = device.header.geometry.clusters(len(l1) * 8)
                device.metadata.free_later(snapshot.l1_table_offset, clusters)
            _mark_copied(device)
            # Another snapshot may have the same L1 table.
            look_again(device)


@contextlib.contextmanager
def _marked_dirty(device: WritableQcow2) -> Iterator[None]:
    """Mark the image dirty while refcounts and flags do not agree; it is not if all goes well."""
    can_tell = device.header.version >= 3
    if can_tell:
        marked = device.header.incompatible | Incompatible.DIRTY
        device.metadata.switch_header(device.header._replace(incompatible=marked))
    refused = None
    try:
        yield
    except _Refused as error:
        refused = error.__cause__
    device.metadata.flush()
    if can_tell:
        unmarked = device.header.incompatible & ~Incompatible.DIRTY
        device.metadata.switch_header(device.header._replace(incompatible=unmarked))
    if refused is not None:
        raise refused


class _Refused(Exception):
    """Nothing has been changed, for the reason that is its cause."""


def _find(device: WritableQcow2, wanted: Mapping[str, str]) -> Snapshot:
    found = find_snapshot(device.snapshots, wanted)
    assert found is not None
    return found


def _l1_of(device: WritableQcow2, snapshot: Snapshot) -> array[int]:
    geometry = device.header.geometry
    return read_l1(device.storage, snapshot.l1_table_offset, snapshot.l1_size, geometry)


def _afford(device: WritableQcow2, l1: array[int]) -> bytearray:
    """Count the work of going through ``l1`` before anything is changed; say what is stored."""
    stored = which_stored(device.storage, device.header, l1)
    spend_on(device.storage, device.header, stored)
    return stored


def _count_again(device: WritableQcow2, l1: array[int], stored: bytearray) -> None:
    """Count what ``l1`` references once more, or, if that does not fit the refcounts, nothing."""
    metadata = device.metadata
    counted = 0
    try:
        for clusters in referenced(device.storage, device.header, l1, stored):
            metadata.allocator.change_many(clusters, +1)
            counted += 1
            metadata.flush_if_crowded()
    except ImageError as error:
        again = referenced(device.storage, device.header, l1, stored)
        for clusters in itertools.islice(again, counted):
            metadata.allocator.change_many(clusters, -1)
        raise _Refused from error


def _let_go(device: WritableQcow2, l1: array[int], stored: bytearray) -> None:
    """Count what ``l1`` references once less; what is free then goes back to the host."""
    metadata = device.metadata
    for clusters in referenced(device.storage, device.header, l1, stored):
        metadata.allocator.change_many(clusters, -1, guests=True)
        metadata.discard_freed()
        metadata.flush_if_crowded()


def _refuse_data_file(device: WritableQcow2) -> None:
    if device.header.has_data_file:
        raise ImageError(
            "Operation not supported: images with an external data file have no snapshots",
            filename=device.name,
        )


def _next_id(snapshots: list[Snapshot]) -> bytes:
    return b"%d" % (max((int(s.id) for s in snapshots if s.id.isdecimal()), default=0) + 1)


def _write_l1_copy(device: WritableQcow2, l1: array[int]) -> int:
    """Write an L1 table to a place of its own, durably; return its host offset."""
    geometry = device.header.geometry
    if not len(l1):
        return 0
    clusters = geometry.clusters(len(l1) * 8)
    offset = device.metadata.allocator.allocate_contiguous(clusters)
    data = big_endian_bytes(l1)
    device.storage.write_at(offset, data.ljust(clusters << geometry.cluster_bits, b"\0"))
    device.metadata.flush()
    return offset


def _mark_copied(device: WritableQcow2) -> None:
    """Set the COPIED flags of the active tables to what the refcounts are now."""
    geometry, metadata, l1 = device.header.geometry, device.metadata, device.l1
    stored = which_stored(device.storage, device.header, l1)
    for l1_index, entry in enumerate(l1):
        offset = entry & L1_OFFSET_MASK
        if not offset:
            continue
        alone = metadata.allocator.refcount(offset >> geometry.cluster_bits) == 1
        if stored[l1_index]:
            _mark_entries(device, offset)
        metadata.set_l1_entry(l1_index, offset | (COPIED if alone else 0))
        metadata.flush_if_crowded()
    device.forget_tables()
    metadata.flush()


def _mark_entries(device: WritableQcow2, offset: int) -> None:
    """Do the same for the entries of the L2 table at host ``offset``, where it lies."""
    import numpy as np

    geometry, allocator = device.header.geometry, device.metadata.allocator
    bits = np.uint64(geometry.cluster_bits)
    step = geometry.l2_entry_size // 8
    table = read_table(device.storage, offset, geometry.cluster_size // 8, "An L2 table")
    entries = np.frombuffer(table, dtype=np.uint64)[::step]
    hosts = entries & np.uint64(L2_OFFSET_MASK)
    counted = ((entries & np.uint64(COMPRESSED)) == 0) & (hosts != 0)
    single = allocator.refcounts(hosts[counted] >> bits) == 1
    marked = entries & ~np.uint64(COPIED)
    marked[counted] |= np.where(single, np.uint64(COPIED), np.uint64(0))
    if bool(np.any(marked != entries)):
        changed = np.frombuffer(table, dtype=np.uint64).copy()
        changed[::step] = marked
        # For a snapshot that shares the table the flags mean nothing.
        device.storage.write_at(offset, changed.astype(">u8").tobytes())


def _switch_table(device: WritableQcow2, snapshots: list[Snapshot]) -> None:
    """Write a new snapshot table, then name it in the header, then free the old one."""
    header, metadata = device.header, device.metadata
    geometry = header.geometry
    data = b"".join(table_entry(snapshot, header.size) for snapshot in snapshots)
    if len(data) > MAX_TABLE_BYTES:
        raise ImageError("The snapshot table would be larger than the format allows")
    old_offset = header.snapshots_offset
    old_size = sum(snapshot.size_on_disk for snapshot in device.snapshots)
    offset = 0
    if data:
        clusters = geometry.clusters(len(data))
        offset = metadata.allocator.allocate_contiguous(clusters)
        device.storage.write_at(offset, data.ljust(clusters << geometry.cluster_bits, b"\0"))
    metadata.flush()
    metadata.switch_header(header._replace(snapshot_count=len(snapshots), snapshots_offset=offset))
    if old_offset and device.snapshots:
        metadata.free_later(old_offset, geometry.clusters(old_size))
    device.snapshots = read_snapshots(device.storage, device.header)
    metadata.flush()
