"""Looking for where metadata lies: when an image is opened, and when its L1 table is another."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from imgtool.formats.qcow2.bitmaps import Bitmap, read_bitmaps
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.overlap import MetadataMap
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2

#: Bytes that an entry of a table takes for a moment; sorted neighbours are one range.
_SORTED_BYTES = 24

_WHAT = "Keeping off its metadata"


def find_metadata(
    storage: Storage,
    header: Header,
    l1: array[int],
    refcount_table: array[int],
    snapshots: list[Snapshot],
    bitmaps: list[Bitmap],
) -> MetadataMap:
    """Find out where metadata lies, and charge for remembering it."""
    storage.account.check(_SORTED_BYTES * (len(l1) + len(refcount_table)), _WHAT)
    found = MetadataMap.of_image(header, l1, refcount_table, snapshots, bitmaps)
    storage.account.charge(found.nbytes, _WHAT)
    return found


def afford_to_look_again(device: WritableQcow2, l1: array[int]) -> None:
    """Raise :class:`~imgtool.errors.OverBudget` if that will be too much with ``l1`` active."""
    entries = len(l1) + len(device.allocator.table)
    device.storage.account.check(_SORTED_BYTES * entries, _WHAT)


def look_again(device: WritableQcow2) -> None:
    """Find out where metadata lies now, instead of where it lay.

    L2 tables that the L1 table names no longer are as free to go as a guest's clusters; those that
    it names now stay, whoever else refers to where they lie. A new image has nothing to keep yet.
    """
    header = device.header
    if device.allocator.guard is None:
        return
    device.allocator.guard = MetadataMap.of_image(
        header,
        device.l1,
        device.allocator.table,
        device.snapshots,
        read_bitmaps(device.storage, header),
    )
