"""vdi: VirtualBox's disks. Source: the description of the format in VirtualBox; little-endian."""

from __future__ import annotations

import uuid
from typing import Any

from construct import Bytes, Const, Int32ul, Int64ul, Struct

from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse
from imgtool.units import div_round_up

_SIGNATURE = b"\x7f\x10\xda\xbe"
_VERSION = 0x00010001
_KINDS = {1: "dynamic", 2: "fixed", 3: "undo", 4: "differencing"}
_FREE, _ZERO = 0xFFFFFFFF, 0xFFFFFFFE
#: No disk has more blocks: QEMU's limit.
_MAX_BLOCKS = 0x1FFFFFF8

_HEADER = Struct(
    "text" / Bytes(64),
    "signature" / Const(_SIGNATURE),
    "version" / Int32ul,
    "header_size" / Int32ul,
    "kind" / Int32ul,
    "flags" / Int32ul,
    "description" / Bytes(256),
    "map_offset" / Int32ul,
    "data_offset" / Int32ul,
    "geometry" / Bytes(12),
    "sector_size" / Int32ul,
    "unused" / Int32ul,
    "disk_size" / Int64ul,
    "block_size" / Int32ul,
    "block_extra" / Int32ul,
    "blocks" / Int32ul,
    "blocks_allocated" / Int32ul,
    "image_id" / Bytes(16),
    "snapshot_id" / Bytes(16),
    "link_id" / Bytes(16),
    "parent_id" / Bytes(16),
)


def probe(head: bytes, tail: bytes) -> int:
    """The signature behind 64 bytes of text."""
    return 100 if head[64:68] == _SIGNATURE else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header, its parent, and where the block map and the blocks are."""
    data = yield from read(0, _HEADER.sizeof(), "The header")
    header = parse(_HEADER, data, "The header")
    notes.variant = _KINDS.get(header.kind)
    notes.virtual_size = header.disk_size
    if header.version != _VERSION:
        notes.unsafe("vdi-version", f"It has the unknown version {header.version:#x}", 68)
    if header.kind not in (1, 2):
        notes.unsafe("vdi-kind", f"It is an image of the kind {header.kind}, not a whole disk", 76)
    for identifier in (header.link_id, header.parent_id):
        if any(identifier):
            notes.parent(str(uuid.UUID(bytes_le=identifier)), 424)
    if header.sector_size != 512:
        notes.unsafe("corrupt", f"Its sectors have {header.sector_size} bytes", 360)
    if header.block_size < 512 or header.block_size & (header.block_size - 1):
        notes.unsafe("corrupt", f"Its blocks have {header.block_size} bytes", 376)
        return
    if header.blocks > _MAX_BLOCKS:
        notes.unsafe("corrupt", f"It counts {header.blocks} blocks", 384)
    elif header.blocks < div_round_up(header.disk_size, header.block_size):
        notes.unsafe("corrupt", "It has fewer blocks than its size needs", 384)
    if header.blocks_allocated > header.blocks:
        notes.unsafe("corrupt", "It counts more blocks in use than there are", 388)
    if header.map_offset % 512 or header.data_offset % 512:
        notes.unsafe("corrupt", "Its block map or its blocks do not begin with a sector", 340)
    if header.map_offset < 512 or header.data_offset < header.map_offset + header.blocks * 4:
        notes.unsafe("table-overlap", "Its block map lies over another part of it", 340)
    notes.start(_inside(notes, header))
    notes.start(_blocks(notes, header))
    if header.blocks:
        yield from _guest_head(notes, header)


def _inside(notes: Notes, header: Any) -> Steps[None]:
    size = yield from file_size()
    if header.map_offset + header.blocks * 4 > size:
        notes.unsafe("table-outside", "The block map ends past the end of the file", 340)
    end = header.data_offset + header.blocks_allocated * (header.block_size + header.block_extra)
    if end > size and header.blocks_allocated:
        notes.unsafe("data-outside", "The blocks in use end past the end of the file", 388)


def _blocks(notes: Notes, header: Any) -> Steps[None]:
    step = header.block_size + header.block_extra
    pointers = Pointers(
        "A block", "data", 4, "little", length=step, unused=frozenset((_FREE, _ZERO)),
        base=header.data_offset, step=step,
    )  # fmt: skip
    return scan(notes, header.map_offset, header.blocks * 4, "The block map", pointers)


def _guest_head(notes: Notes, header: Any) -> Steps[None]:
    data = yield from read(header.map_offset, 4, "The block map")
    block = int.from_bytes(data, "little")
    if len(data) < 4 or block in (_FREE, _ZERO):
        return
    step = header.block_size + header.block_extra
    offset = header.data_offset + block * step + header.block_extra
    data = yield from read(offset, GUEST_HEAD, "The first block")
    notes.guest_head(offset, data)
