"""vhd: Virtual PC's disks, QEMU's vpc. Source: Virtual Hard Disk Image Format; big-endian."""

from __future__ import annotations

import uuid
from typing import Any

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from imgtool.inspection import Notes, Steps, file_size, read, read_exact
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse
from imgtool.units import align_up, div_round_up

_SECTOR = 512
_COOKIE = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_KINDS = {_FIXED: "fixed", _DYNAMIC: "dynamic", _DIFFERENCING: "differencing"}
_VERSION = 0x00010000
_FREE = 0xFFFFFFFF
#: A parent's name takes no more; a longer one is not looked at, and is unsafe anyway.
_MAX_LOCATOR = 4096

_FOOTER = Struct(
    "cookie" / Const(_COOKIE),
    "features" / Int32ub,
    "version" / Int32ub,
    "data_offset" / Int64ub,
    "time" / Int32ub,
    "creator" / Bytes(4),
    "creator_version" / Int32ub,
    "creator_host" / Bytes(4),
    "original_size" / Int64ub,
    "size" / Int64ub,
    "cylinders" / Int16ub,
    "heads" / Int8ub,
    "sectors" / Int8ub,
    "kind" / Int32ub,
    "checksum" / Int32ub,
    "id" / Bytes(16),
    "saved" / Int8ub,
)
_CHECKSUM = slice(64, 68)

_LOCATOR = Struct(
    "platform" / Bytes(4),
    "space" / Int32ub,
    "length" / Int32ub,
    "reserved" / Int32ub,
    "offset" / Int64ub,
)
_DYNAMIC_HEADER = Struct(
    "cookie" / Const(b"cxsparse"),
    "data_offset" / Int64ub,
    "table_offset" / Int64ub,
    "version" / Int32ub,
    "entries" / Int32ub,
    "block_size" / Int32ub,
    "checksum" / Int32ub,
    "parent_id" / Bytes(16),
    "parent_time" / Int32ub,
    "reserved" / Int32ub,
    "parent_name" / Bytes(512),
    "locators" / _LOCATOR[8],
)
_DYNAMIC_CHECKSUM = slice(36, 40)
_DYNAMIC_LENGTH = 1024

#: How a locator's name is written, by platform.
_ENCODINGS = {
    b"W2ru": "utf-16-le",
    b"W2ku": "utf-16-le",
    b"Wi2r": "latin-1",
    b"Wi2k": "latin-1",
    b"MacX": "utf-8",
}


def probe(head: bytes, tail: bytes) -> int:
    """The footer's cookie: at the end of every image, and at the start of those that grow."""
    if head[:8] == _COOKIE:
        return 100
    return 50 if _COOKIE in (tail[-512:-504], tail[-511:-503]) else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the footer and its copy, the dynamic header, and the parent that it names."""
    head = yield from read(0, _SECTOR, "The copy of the footer")
    if head[:8] == _COOKIE:
        footer = _judge_footer(notes, head, 0)
        notes.start(_footers_agree(notes, head))
        if footer.kind == _FIXED:
            notes.unsafe("vhd-footer", "It is of a fixed size and begins with a footer", 0)
        else:
            yield from _dynamic(notes, footer)
        return
    size = yield from file_size()
    data = yield from read(max(0, size - _SECTOR), _SECTOR, "The footer")
    offset = max(0, size - _SECTOR)
    if data[:8] != _COOKIE:
        # Old versions wrote one byte less.
        data, offset = data[1:], offset + 1
    footer = _judge_footer(notes, data, offset)
    if footer.kind != _FIXED:
        notes.unsafe("vhd-footer", "It has no copy of its footer at the start", offset)
    elif footer.size > offset:
        notes.unsafe("data-outside", "The disk is larger than the file", offset)


def _judge_footer(notes: Notes, data: bytes, offset: int) -> Any:
    footer = parse(_FOOTER, data, "The footer", offset)
    notes.variant = _KINDS.get(footer.kind)
    notes.virtual_size = footer.size
    if footer.kind not in _KINDS:
        notes.unsafe("vhd-kind", f"It is a disk of the unknown kind {footer.kind}", offset)
    if footer.version != _VERSION:
        notes.unsafe("vhd-version", f"It has the unknown version {footer.version:#x}", offset)
    if _sum(data[:_SECTOR], _CHECKSUM) != footer.checksum:
        notes.unsafe("vhd-checksum", "The footer has a wrong checksum", offset)
    if footer.saved:
        notes.warn("vhd-saved", "The machine was saved and not shut down", offset)
    return footer


def _sum(data: bytes, field: slice) -> int:
    """The one's complement of the sum of all bytes but the field of the checksum itself."""
    return ~(sum(data) - sum(data[field])) & 0xFFFFFFFF


def _footers_agree(notes: Notes, head: bytes) -> Steps[None]:
    size = yield from file_size()
    offset = max(0, size - _SECTOR)
    data = yield from read(offset, _SECTOR, "The footer")
    if data[:8] != _COOKIE:
        notes.unsafe("vhd-footer", "It has no footer at its end", offset)
    elif data != head:
        notes.unsafe("vhd-footer", "The footer differs from its copy at the start", offset)


def _dynamic(notes: Notes, footer: Any) -> Steps[None]:
    what = "The dynamic header"
    data = yield from read_exact(footer.data_offset, _DYNAMIC_LENGTH, what)
    header = parse(_DYNAMIC_HEADER, data, what, footer.data_offset)
    if _sum(data, _DYNAMIC_CHECKSUM) != header.checksum:
        notes.unsafe("vhd-checksum", f"{what} has a wrong checksum", footer.data_offset)
    if footer.kind == _DIFFERENCING or any(header.parent_id):
        _parent(notes, header, footer.data_offset)
    block = header.block_size
    if block < _SECTOR or block & (block - 1):
        notes.unsafe("corrupt", f"Its blocks have {block} bytes", footer.data_offset)
        return
    if header.entries < div_round_up(footer.size, block):
        notes.unsafe("corrupt", "It has fewer blocks than its size needs", footer.data_offset)
    notes.start(_table_inside(notes, header))
    pointers = Pointers(
        "A block", "data", 4, "big", length=block, unused=frozenset((_FREE,)), step=_SECTOR
    )
    place, length = header.table_offset, header.entries * 4
    taken = ((0, _SECTOR), (place, place + length))
    notes.start(scan(notes, place, length, "The block table", pointers, taken))
    data = yield from read(header.table_offset, 4, "The block table")
    sector = int.from_bytes(data, "big")
    if header.entries and len(data) == 4 and sector != _FREE:
        # In front of each block is a bitmap of its sectors.
        bitmap = align_up(div_round_up(block // _SECTOR, 8), _SECTOR)
        offset = sector * _SECTOR + bitmap
        data = yield from read(offset, GUEST_HEAD, "The first block")
        notes.guest_head(offset, data)


def _table_inside(notes: Notes, header: Any) -> Steps[None]:
    size = yield from file_size()
    if header.table_offset + header.entries * 4 > size:
        notes.unsafe(
            "table-outside", "The block table ends past the end of the file", header.table_offset
        )


def _parent(notes: Notes, header: Any, offset: int) -> None:
    notes.parent(str(uuid.UUID(bytes=header.parent_id)), offset)
    name = header.parent_name.decode("utf-16-be", "replace").split("\0", 1)[0]
    if name:
        notes.file("parent", name, offset=offset)
    for locator in header.locators:
        if locator.platform != bytes(4):
            notes.start(_locator(notes, locator))


def _locator(notes: Notes, locator: Any) -> Steps[None]:
    what = "A locator of the parent"
    if locator.length > _MAX_LOCATOR:
        notes.unsafe("corrupt", f"{what} has {locator.length} bytes", locator.offset)
        return
    data = yield from read_exact(locator.offset, locator.length, what)
    encoding = _ENCODINGS.get(locator.platform, "latin-1")
    notes.file("parent", data.decode(encoding, "replace").rstrip("\0"), offset=locator.offset)
