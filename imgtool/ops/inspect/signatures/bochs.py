"""bochs: growing disks of the Bochs emulator. Source: its documentation; little-endian."""

from __future__ import annotations

from construct import Bytes, Int32ul, Int64ul, Padding, Struct

from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.schema.fields import parse

_MAGIC = b"Bochs Virtual HD Image"
_VERSIONS = (0x00010000, 0x00020000)
_MAX_EXTENT = 8 << 20

_COMMON = (
    "magic" / Bytes(32),
    "type" / Bytes(16),
    "subtype" / Bytes(16),
    "version" / Int32ul,
    "header_size" / Int32ul,
    "catalog_entries" / Int32ul,
    "bitmap_size" / Int32ul,
    "extent_size" / Int32ul,
)
_HEADER_1 = Struct(*_COMMON, "size" / Int64ul)
_HEADER_2 = Struct(*_COMMON, Padding(4), "size" / Int64ul)


def probe(head: bytes, tail: bytes) -> int:
    """The magic, and one of two versions."""
    known = head[:32].split(b"\0", 1)[0] == _MAGIC
    return 100 if known and int.from_bytes(head[64:68], "little") in _VERSIONS else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header: its kind, and that the catalogue is inside the file."""
    data = yield from read(0, _HEADER_2.sizeof(), "The header")
    newer = int.from_bytes(data[64:68], "little") == _VERSIONS[1]
    header = parse(_HEADER_2 if newer else _HEADER_1, data, "The header")
    kind = header.subtype.split(b"\0", 1)[0].decode("ascii", "replace")
    notes.variant = kind.lower() if kind.isprintable() else None
    notes.virtual_size = header.size
    if header.type.split(b"\0", 1)[0] != b"Redolog" or kind != "Growing":
        notes.unsafe("bochs-kind", "It is not a disk of its own, but changes to another one", 32)
    if not 512 <= header.extent_size <= _MAX_EXTENT or header.extent_size & (
        header.extent_size - 1
    ):
        notes.unsafe("corrupt", f"Its extents have {header.extent_size} bytes", 80)
    if header.catalog_entries * header.extent_size < header.size:
        notes.unsafe("corrupt", "It has fewer extents than its size needs", 72)
    size = yield from file_size()
    if header.header_size + header.catalog_entries * 4 > size:
        notes.unsafe("table-outside", "The catalogue ends past the end of the file", 72)
