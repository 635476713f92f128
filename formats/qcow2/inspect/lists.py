"""Internal snapshots and persistent bitmaps: that their lists are sound, and where they point."""

from __future__ import annotations

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.bitmaps import parse_directory
from imgtool.formats.qcow2.geometry import MAX_L1_BYTES
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.inspect.layout import Layout
from imgtool.formats.qcow2.snapshots import MAX_EXTRA_DATA
from imgtool.inspection import Notes, Steps, read_exact
from imgtool.schema.fields import parse
from imgtool.units import align_up

#: What is looked at; a format's own limits are a thousand times larger.
_MAX_SNAPSHOTS = 1024
_MAX_DIRECTORY = 256 << 10


def snapshots(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the snapshot table, and enter it with the snapshots' L1 tables."""
    count, offset = header.snapshot_count, header.snapshots_offset
    notes.feature("internal snapshots")
    notes.warn("snapshots", f"It has {count} internal snapshots, which its disk does not show")
    if count > _MAX_SNAPSHOTS:
        notes.not_checked(
            "The snapshot table", offset, f"it counts more than {_MAX_SNAPSHOTS} snapshots"
        )
        return
    head_size = schema.SNAPSHOT_HEAD.sizeof()
    end = offset
    for _ in range(count):
        data = yield from read_exact(offset, head_size, "The snapshot table")
        head = parse(schema.SNAPSHOT_HEAD, data, "The snapshot table", offset)
        if head.extra_data_size > MAX_EXTRA_DATA:
            raise CorruptImage("A snapshot has too much extra data", offset)
        if head.l1_size * 8 > MAX_L1_BYTES:
            raise CorruptImage("The L1 table of a snapshot is too large", offset)
        if head.l1_table_offset % header.geometry.cluster_size:
            raise CorruptImage("The L1 table of a snapshot is not aligned", offset)
        layout.add(head.l1_table_offset, head.l1_size * 8, "The L1 table of a snapshot")
        length = head.extra_data_size + head.id_str_size + head.name_size
        end = offset + head_size + length
        offset = align_up(end, 8)
    layout.add(header.snapshots_offset, end - header.snapshots_offset, "The snapshot table")


def bitmaps(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the bitmap directory, and enter it with the bitmaps' tables."""
    extension = header.bitmaps
    if extension is None:
        return
    offset, length = extension.directory_offset, extension.directory_size
    layout.add(offset, length, "The bitmap directory")
    if length > _MAX_DIRECTORY:
        notes.not_checked(
            "The bitmap directory", offset, f"it has more than {_MAX_DIRECTORY} bytes"
        )
        return
    directory = yield from read_exact(offset, length, "The bitmap directory")
    for bitmap in parse_directory(bytearray(directory), header, extension):
        layout.add(bitmap.table_offset, bitmap.table_size * 8, "The table of a bitmap")
