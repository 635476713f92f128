"""Letting go of what is mapped: single L2 tables, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.formats.qcow2.guarding import look_again
from imgtool.formats.qcow2.references import referenced, spend_on, which_stored

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2

#: Pieces of the file that may wait to be given back.
_PIECES = 1 << 16


def make_empty(device: WritableQcow2) -> None:
    """Unmap the whole disk, and give back what only it held. Snapshots keep what is theirs."""
    with device.exclusive():
        device.flush()
        drop_tables(device, 0, tables_from(device, 0), discard=False)
        if device.header.has_data_file and device.data is not None:
            device.data.discard(0, device.data.size())
        # What is cut off needs no holes.
        trim_file(device)
        with device.gate.drained():
            device.metadata.discard_freed()


def tables_from(device: WritableQcow2, first: int) -> bytearray:
    """Say which L2 tables from the L1 entry ``first`` on have to be read to be let go of.

    Raises :class:`~imgtool.errors.OverBudget` if that is too much work.
    """
    stored = which_stored(device.storage, device.header, device.l1[first:])
    spend_on(device.storage, device.header, stored)
    return stored


def drop_tables(
    device: WritableQcow2, first: int, stored: bytearray, *, discard: bool = True
) -> None:
    """Unmap everything from the L1 entry ``first`` on; what was shown there must not matter.

    ``stored`` is what :func:`tables_from` said, before anything was changed. Without ``discard``
    the host storage is given back only where it is in so many pieces that they had better not be
    remembered; the rest is the caller's to give back.
    """
    metadata = device.metadata
    dropped = device.l1[first:]
    if not any(dropped):
        return
    for l1_index in range(first, len(device.l1)):
        metadata.set_l1_entry(l1_index, 0)
        metadata.flush_if_crowded()
    metadata.flush()
    device.forget_tables()
    look_again(device)
    with device.gate.drained():
        for clusters in referenced(device.storage, device.header, dropped, stored):
            metadata.allocator.change_many(clusters, -1, guests=True)
            if discard or len(metadata.allocator.freed) > _PIECES:
                metadata.discard_freed()
            metadata.flush_if_crowded()
    metadata.flush()


def trim_file(device: WritableQcow2) -> None:
    """Cut off the clusters at the file's end that hold nothing."""
    device.flush()
    allocator = device.metadata.allocator
    end = allocator.end()
    if allocator.guard is not None:
        # Metadata that is counted as free is still there.
        end = max(end, allocator.guard.end)
    end <<= device.header.geometry.cluster_bits
    if end < device.storage.size():
        device.storage.truncate(end)
