"""parallels: Parallels' disks. Source: QEMU's specification of the format; little-endian."""

from __future__ import annotations

from typing import Any

from construct import Bytes, Int32ul, Int64ul, Struct

from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse

_SECTOR = 512
_PLAIN, _EXTENDED = b"WithoutFreeSpace", b"WithouFreSpacExt"
_VERSION = 2
_IN_USE = 0x746F6E59
_MAX_ENTRIES = 1 << 29

_HEADER = Struct(
    "magic" / Bytes(16),
    "version" / Int32ul,
    "heads" / Int32ul,
    "cylinders" / Int32ul,
    "block_sectors" / Int32ul,
    "entries" / Int32ul,
    "sectors" / Int64ul,
    "in_use" / Int32ul,
    "data_sector" / Int32ul,
    "flags" / Int32ul,
    "extension_sector" / Int64ul,
)


def probe(head: bytes, tail: bytes) -> int:
    """One of two magics, and the version."""
    known = head[:16] in (_PLAIN, _EXTENDED)
    return 100 if known and int.from_bytes(head[16:20], "little") == _VERSION else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header, and where the block table and its extension are."""
    data = yield from read(0, _HEADER.sizeof(), "The header")
    header = parse(_HEADER, data, "The header")
    extended = header.magic == _EXTENDED
    notes.variant = "extended" if extended else "plain"
    sectors = header.sectors if extended else header.sectors & 0xFFFFFFFF
    notes.virtual_size = sectors * _SECTOR
    block = header.block_sectors * _SECTOR
    if not block or header.block_sectors >= 1 << 22:
        notes.unsafe("corrupt", f"Its blocks have {header.block_sectors} sectors", 28)
        return
    if header.entries > _MAX_ENTRIES:
        notes.unsafe("corrupt", f"It counts {header.entries} blocks", 32)
    elif header.entries * header.block_sectors < sectors:
        notes.unsafe("corrupt", "It has fewer blocks than its size needs", 32)
    if header.in_use == _IN_USE:
        notes.warn("dirty", "It was not closed properly", 44)
    if header.extension_sector and extended:
        notes.feature("format extension")
    notes.start(_inside(notes, header))
    pointers = Pointers(
        "A block", "data", 4, "little", length=block,
        step=block if extended else _SECTOR,
    )  # fmt: skip
    start, length = _HEADER.sizeof(), header.entries * 4
    notes.start(scan(notes, start, length, "The block table", pointers, ((0, start + length),)))
    if header.entries:
        data = yield from read(_HEADER.sizeof(), 4, "The block table")
        place = int.from_bytes(data, "little") * (header.block_sectors if extended else 1)
        if place:
            data = yield from read(place * _SECTOR, GUEST_HEAD, "The first block")
            notes.guest_head(place * _SECTOR, data)


def _inside(notes: Notes, header: Any) -> Steps[None]:
    size = yield from file_size()
    if _HEADER.sizeof() + header.entries * 4 > size:
        notes.unsafe("table-outside", "The block table ends past the end of the file", 32)
    if header.extension_sector * _SECTOR >= max(size, 1):
        notes.unsafe("table-outside", "The format extension lies past the end of the file", 56)
