"""qed: QEMU's enhanced disks. Source: QEMU's specification of the format; little-endian."""

from __future__ import annotations

from typing import Any

from construct import Const, Int32ul, Int64ul, Struct

from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.inspection.filenames import MAX_NAME
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse

_MAGIC = b"QED\0"
_BACKING, _NEED_CHECK, _NO_PROBE = 1, 2, 4
_KNOWN = _BACKING | _NEED_CHECK | _NO_PROBE

_HEADER = Struct(
    "magic" / Const(_MAGIC),
    "cluster_size" / Int32ul,
    "table_size" / Int32ul,
    "header_size" / Int32ul,
    "features" / Int64ul,
    "compatible" / Int64ul,
    "autoclear" / Int64ul,
    "l1_offset" / Int64ul,
    "size" / Int64ul,
    "backing_offset" / Int32ul,
    "backing_size" / Int32ul,
)


def probe(head: bytes, tail: bytes) -> int:
    """The magic."""
    return 100 if head[:4] == _MAGIC else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header, the backing file that it names, and where its tables are."""
    data = yield from read(0, _HEADER.sizeof(), "The header")
    header = parse(_HEADER, data, "The header")
    notes.virtual_size = header.size
    notes.warn("old-format", "Nothing but old versions of QEMU writes this format")
    if header.features & ~_KNOWN:
        unknown = header.features & ~_KNOWN
        notes.unsafe("unknown-feature", f"It needs the unknown features {unknown:#x}", 16)
    if header.features & _NEED_CHECK:
        notes.warn("dirty", "It was not closed properly", 16)
    cluster = header.cluster_size
    if not 4096 <= cluster <= 64 << 20 or cluster & (cluster - 1):
        notes.unsafe("corrupt", f"Its clusters have {cluster} bytes", 4)
        return
    tables = header.table_size
    if not 1 <= tables <= 16 or tables & (tables - 1):
        notes.unsafe("corrupt", f"Its tables have {tables} clusters", 8)
        return
    if header.features & _BACKING:
        yield from _backing(notes, header)
    entries = cluster * tables // 8
    if header.size > entries * entries * cluster or header.size % 512:
        notes.unsafe("corrupt", "Its size is not one that its tables can map", 48)
    if header.l1_offset % cluster or header.l1_offset < cluster * max(1, header.header_size):
        notes.unsafe("corrupt", "Its L1 table is not where it may be", 40)
    notes.start(_inside(notes, header))
    pointers = Pointers(
        "An L2 table", "table", 8, "little", length=tables * cluster, alignment=cluster
    )
    notes.start(scan(notes, header.l1_offset, tables * cluster, "The L1 table", pointers))
    yield from _guest_head(notes, header)


def _backing(notes: Notes, header: Any) -> Steps[None]:
    offset, length = header.backing_offset, header.backing_size
    if length > MAX_NAME or offset + length > header.header_size * header.cluster_size:
        notes.unsafe("backing-file", "It has a backing file, whose name is not in the header", 56)
        return
    data = yield from read(offset, length, "The backing file name")
    name = data.decode("utf-8", "surrogateescape")
    recorded = "raw" if header.features & _NO_PROBE else None
    notes.file("backing-file", name, format=recorded, offset=offset)
    if recorded is None:
        notes.unsafe("backing-format", "The format of its backing file is not recorded", offset)


def _inside(notes: Notes, header: Any) -> Steps[None]:
    size = yield from file_size()
    if header.l1_offset + header.table_size * header.cluster_size > size:
        notes.unsafe("table-outside", "The L1 table ends past the end of the file", 40)


def _guest_head(notes: Notes, header: Any) -> Steps[None]:
    place = header.l1_offset
    for what in ("The L1 table", "The first L2 table"):
        data = yield from read(place, 8, what)
        place = int.from_bytes(data, "little")
        # 1 is a cluster of zeros.
        if place <= 1 or place % header.cluster_size:
            return
    data = yield from read(place, GUEST_HEAD, "The first cluster of the disk")
    notes.guest_head(place, data)
