"""The snapshot table under repair.

Source: the specification's section "Snapshots".
"""

from __future__ import annotations

from imgtool.errors import CorruptImage, ImageError
from imgtool.findings import Findings
from imgtool.formats.qcow2.check.extras import lacks_extra_data
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.repair.header import switch_header
from imgtool.formats.qcow2.snapshots import (
    MAX_EXTRA_DATA,
    MAX_TABLE_BYTES,
    Snapshot,
    entries,
    table_entry,
)
from imgtool.storage.base import Storage


def readable_snapshots(
    storage: Storage, header: Header, findings: Findings
) -> tuple[list[Snapshot], bool]:
    """Read what can be read of the snapshot table, and report what cannot.

    Also says whether the table is whole: otherwise it is to be written anew.
    """
    found: list[Snapshot] = []
    whole, offset, held = True, header.snapshots_offset, storage.size()
    try:
        read = entries(storage, header, most_extra=MAX_TABLE_BYTES, whole=False)
        for number, snapshot in enumerate(read):
            if offset + snapshot.length > held:
                findings.corruption(
                    f"Snapshot table entry {number} ends past the end of the file: zeros in its "
                    "place"
                )
                whole = False
            offset += snapshot.size_on_disk
            if len(snapshot.extra_data) > MAX_EXTRA_DATA:
                findings.corruption(
                    f"Discarding too much extra metadata in snapshot table entry {number} "
                    f"({len(snapshot.extra_data)} > {MAX_EXTRA_DATA})"
                )
                whole = False
                snapshot = snapshot._replace(extra_data=snapshot.extra_data[:MAX_EXTRA_DATA])
            whole &= not lacks_extra_data(header, snapshot)
            found.append(snapshot)
    except CorruptImage as error:
        lost = header.snapshot_count - len(found)
        findings.corruption(f"Discarding {lost} snapshots: {error.reason}", lost)
        whole = False
    return found, whole


def write_snapshots(
    storage: Storage, header: Header, snapshots: list[Snapshot], fresh: Fresh
) -> Header:
    """Write the snapshot table to new clusters; return the header that names it."""
    data = b"".join(table_entry(snapshot, header.size) for snapshot in snapshots)
    if len(data) > MAX_TABLE_BYTES:
        raise ImageError("The snapshot table would be larger than the format allows")
    offset = fresh.place(data) if data else 0
    return switch_header(
        storage, header._replace(snapshot_count=len(snapshots), snapshots_offset=offset)
    )
