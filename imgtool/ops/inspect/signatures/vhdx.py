"""vhdx: Hyper-V's disks. Source: [MS-VHDX]; little-endian.

Everything that counts is there twice or by unique id: two headers of which the newer holds, two
tables of regions, and a table of metadata items.
"""

from __future__ import annotations

import uuid
from typing import Any

from construct import Bytes, Const, Int16ul, Int32ul, Int64ul, Struct

from imgtool.errors import CorruptImage
from imgtool.inspection import Notes, Steps, file_size, read, read_exact
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.crc32c import crc32c
from imgtool.schema.fields import parse
from imgtool.units import div_round_up

_MAGIC = b"vhdxfile"
_KIB = 1 << 10
_MIB = 1 << 20
_HEADERS = (64 * _KIB, 128 * _KIB)
_HEADER_LENGTH = 4 * _KIB
_REGION_TABLES = (192 * _KIB, 256 * _KIB)
_TABLE_LENGTH = 64 * _KIB
_MAX_ENTRIES = 2047
#: The longest item is the locator of a parent: a few names.
_MAX_ITEM = 64 * _KIB
_PRESENT = 6
_MAX_SIZE = 64 << 40

_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR_SIZE = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_KNOWN_ITEMS = (_PARAMETERS, _SIZE, _SECTOR_SIZE, _PHYSICAL_SECTOR_SIZE, _DISK_ID, _PARENT)
_REQUIRED = 4

_HEADER = Struct(
    "signature" / Const(b"head"),
    "checksum" / Int32ul,
    "sequence" / Int64ul,
    "file_write_id" / Bytes(16),
    "data_write_id" / Bytes(16),
    "log_id" / Bytes(16),
    "log_version" / Int16ul,
    "version" / Int16ul,
    "log_length" / Int32ul,
    "log_offset" / Int64ul,
)
_TABLE = Struct(
    "signature" / Const(b"regi"), "checksum" / Int32ul, "count" / Int32ul, "reserved" / Int32ul
)
_REGION = Struct("id" / Bytes(16), "offset" / Int64ul, "length" / Int32ul, "required" / Int32ul)
_ITEMS = Struct("signature" / Const(b"metadata"), "reserved" / Bytes(2), "count" / Int16ul)
_ITEMS_LENGTH = 32
_ITEM = Struct(
    "id" / Bytes(16),
    "offset" / Int32ul,
    "length" / Int32ul,
    "flags" / Int32ul,
    "reserved" / Int32ul,
)
_LOCATOR = Struct("type" / Bytes(16), "reserved" / Int16ul, "count" / Int16ul)
_PAIR = Struct(
    "key_offset" / Int32ul, "value_offset" / Int32ul, "key_length" / Int16ul, "length" / Int16ul
)
#: The keys of a parent locator that are names of files.
_NAMES = ("relative_path", "volume_path", "absolute_win32_path")


def probe(head: bytes, tail: bytes) -> int:
    """The file identifier."""
    return 100 if head[:8] == _MAGIC else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge headers and region tables, and follow them to the metadata and the parent."""
    headers = []
    for offset in _HEADERS:
        data = yield from read(offset, _HEADER_LENGTH, "A header")
        header = _checked(_HEADER, data, _HEADER_LENGTH)
        if header is None:
            notes.warn("vhdx-header", "One of the two headers is not valid", offset)
        else:
            headers.append((header.sequence, offset, header))
    if headers:
        _, offset, header = max(headers, key=lambda found: found[:2])
        _judge_header(notes, header, offset)
        notes.start(_log_inside(notes, header))
    else:
        notes.unsafe("vhdx-header", "Neither of the two headers is valid", _HEADERS[0])
    tables = []
    for offset in _REGION_TABLES:
        data = yield from read(offset, _TABLE_LENGTH, "A region table")
        if _checked(_TABLE, data, _TABLE_LENGTH) is None:
            notes.warn("vhdx-regions", "One of the two region tables is not valid", offset)
        else:
            tables.append((offset, data))
    if not tables:
        notes.unsafe("vhdx-regions", "Neither of the two region tables is valid", _REGION_TABLES[0])
        return
    if len(tables) == 2 and tables[0][1] != tables[1][1]:
        notes.unsafe("vhdx-regions", "The two region tables differ", _REGION_TABLES[1])
    regions = _regions(notes, *tables[0])
    metadata = regions.get(_METADATA)
    if metadata is None or _BAT not in regions:
        notes.unsafe("vhdx-regions", "It has no metadata or no block table", tables[0][0])
        return
    notes.start(_regions_inside(notes, list(regions.values())))
    yield from _metadata(notes, metadata, regions[_BAT])


def _checked(schema: Any, data: bytes, length: int) -> Any:
    """A structure with a checksum in its second field, or None if it is not valid."""
    try:
        found = parse(schema, data, "The structure")
    except CorruptImage:
        return None
    whole = len(data) == length
    return found if whole and crc32c(data[:4] + bytes(4) + data[8:]) == found.checksum else None


def _judge_header(notes: Notes, header: Any, offset: int) -> None:
    if header.version != 1 or header.log_version != 0:
        notes.unsafe("vhdx-version", f"It has the unknown version {header.version}", offset)
    if any(header.log_id):
        # Whoever opens it sees what the log makes of it, parents and all.
        notes.unsafe(
            "vhdx-log", "It has a log that is to be replayed, and may change anything", offset
        )
    if header.log_offset % _MIB or header.log_length % _MIB:
        notes.unsafe("corrupt", "Its log is not aligned", offset)


def _log_inside(notes: Notes, header: Any) -> Steps[None]:
    size = yield from file_size()
    if any(header.log_id) and header.log_offset + header.log_length > size:
        notes.unsafe("table-outside", "Its log ends past the end of the file", header.log_offset)


def _regions(notes: Notes, offset: int, data: bytes) -> dict[uuid.UUID, Any]:
    table = parse(_TABLE, data, "The region table", offset)
    found: dict[uuid.UUID, Any] = {}
    if table.count > _MAX_ENTRIES:
        notes.unsafe("corrupt", f"The region table counts {table.count} regions", offset)
        return found
    for index in range(table.count):
        start = _TABLE.sizeof() + index * _REGION.sizeof()
        region = parse(_REGION, data[start : start + _REGION.sizeof()], "A region", offset + start)
        identifier = uuid.UUID(bytes_le=region.id)
        if identifier in found:
            notes.unsafe("corrupt", "It has the same region twice", offset + start)
        elif identifier in (_BAT, _METADATA):
            found[identifier] = region
            if region.offset < _MIB or region.offset % _MIB or region.length % _MIB:
                notes.unsafe("corrupt", "A region is not aligned to a megabyte", offset + start)
        elif region.required & 1:
            notes.unsafe(
                "unknown-feature", f"It needs the unknown region {identifier}", offset + start
            )
    return found


def _regions_inside(notes: Notes, regions: list[Any]) -> Steps[None]:
    size = yield from file_size()
    ordered = sorted(regions, key=lambda region: region.offset)
    for region in ordered:
        if region.offset + region.length > size:
            notes.unsafe("table-outside", "A region ends past the end of the file", region.offset)
    first, *others = ordered
    for second in others:
        if first.offset + first.length > second.offset:
            notes.unsafe("table-overlap", "Two regions overlap", second.offset)
        first = second


def _metadata(notes: Notes, region: Any, bat: Any) -> Steps[None]:
    what = "The metadata"
    data = yield from read_exact(region.offset, min(region.length, _TABLE_LENGTH), what)
    table = parse(_ITEMS, data, what, region.offset)
    if table.count > _MAX_ENTRIES:
        raise CorruptImage(f"{what} count {table.count} items", region.offset)
    entries: dict[uuid.UUID, Any] = {}
    for index in range(table.count):
        start = _ITEMS_LENGTH + index * _ITEM.sizeof()
        entry = parse(_ITEM, data[start : start + _ITEM.sizeof()], what, region.offset + start)
        identifier = uuid.UUID(bytes_le=entry.id)
        if entry.offset + entry.length > region.length or entry.length > _MAX_ITEM:
            notes.unsafe("corrupt", "An item of the metadata lies outside them", region.offset)
        elif identifier in entries:
            notes.unsafe("corrupt", "The metadata have the same item twice", region.offset)
        elif identifier in _KNOWN_ITEMS:
            entries[identifier] = entry
        elif entry.flags & _REQUIRED:
            notes.unsafe(
                "unknown-feature", f"It needs the unknown metadata {identifier}", region.offset
            )
    items: dict[uuid.UUID, bytes] = {}
    for identifier, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        items[identifier] = yield from read(region.offset + entry.offset, entry.length, what)
    yield from _judge_items(notes, items, region.offset, bat)


def _judge_items(notes: Notes, items: dict[uuid.UUID, bytes], offset: int, bat: Any) -> Steps[None]:
    size = int.from_bytes(items.get(_SIZE, b"")[:8], "little")
    sector = int.from_bytes(items.get(_SECTOR_SIZE, b"")[:4], "little")
    parameters = items.get(_PARAMETERS, b"").ljust(8, b"\0")
    block = int.from_bytes(parameters[:4], "little")
    flags = int.from_bytes(parameters[4:8], "little")
    notes.variant = "fixed" if flags & 1 else "dynamic"
    notes.virtual_size = size if _SIZE in items else None
    if flags & 2 or _PARENT in items:
        notes.variant = "differencing"
        _parent(notes, items.get(_PARENT, b""), offset)
    if not 0 < size <= _MAX_SIZE or sector not in (512, 4096) or size % sector:
        notes.unsafe("corrupt", "Its size, or that of its sectors, can't be", offset)
        return
    if not _MIB <= block <= 256 * _MIB or block & (block - 1):
        notes.unsafe("corrupt", f"Its blocks have {block} bytes", offset)
        return
    if bat.length < div_round_up(size, block) * 8:
        notes.unsafe("corrupt", "The block table is too small for the disk", bat.offset)
    pointers = Pointers(
        "A block", "data", 8, "little", length=min(block, _MIB), mask=~(_MIB - 1),
        used=lambda entry: entry & 7 >= _PRESENT,
    )  # fmt: skip
    # Behind every so many blocks is an entry for their bitmap, of which only overlays have any.
    ratio = (sector << 23) // block
    blocks = div_round_up(size, block)
    length = (blocks + (blocks - 1) // ratio) * 8
    taken = ((0, _MIB), (offset, offset + _MIB))
    notes.start(scan(notes, bat.offset, length, "The block table", pointers, taken))
    data = yield from read(bat.offset, 8, "The block table")
    entry = int.from_bytes(data, "little")
    if entry & 7 == _PRESENT:
        place = entry >> 20 << 20
        data = yield from read(place, GUEST_HEAD, "The first block")
        notes.guest_head(place, data)


def _parent(notes: Notes, data: bytes, offset: int) -> None:
    notes.unsafe("parent", "It needs a parent image", offset)
    locator = parse(_LOCATOR, data, "The parent locator", offset)
    for index in range(min(locator.count, 64)):
        start = _LOCATOR.sizeof() + index * _PAIR.sizeof()
        pair = parse(_PAIR, data[start : start + _PAIR.sizeof()], "The parent locator", offset)
        key = data[pair.key_offset : pair.key_offset + pair.key_length]
        value = data[pair.value_offset : pair.value_offset + pair.length]
        name, text = key.decode("utf-16-le", "replace"), value.decode("utf-16-le", "replace")
        if name in _NAMES:
            notes.file("parent", text, offset=offset)
        elif name == "parent_linkage":
            notes.parent(text[:64] if text.isprintable() else "with an unreadable id", offset)
