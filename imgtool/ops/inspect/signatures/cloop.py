"""cloop: compressed loop devices, read-only disks of Knoppix; big-endian."""

from __future__ import annotations

import zlib

from construct import Bytes, Int32ub, Struct

from imgtool.inspection import Notes, Steps, file_size, pieces, read
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.schema.fields import big_endian_u64, parse

#: What every such file begins with: a shell script that mounts it.
_SCRIPT = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
_MAX_BLOCK = 64 << 20
_MAX_TABLE = 8 << 20

_HEADER = Struct("script" / Bytes(128), "block_size" / Int32ub, "blocks" / Int32ub)


def probe(head: bytes, tail: bytes) -> int:
    """The script."""
    return 100 if head.startswith(_SCRIPT) else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the sizes, and that the table of offsets ascends and stays inside the file."""
    data = yield from read(0, _HEADER.sizeof(), "The header")
    header = parse(_HEADER, data, "The header")
    notes.virtual_size = header.block_size * header.blocks
    if header.block_size % 512 or not 0 < header.block_size <= _MAX_BLOCK:
        notes.unsafe("corrupt", f"Its blocks have {header.block_size} bytes", 128)
    length = (header.blocks + 1) * 8
    if length > _MAX_TABLE:
        notes.not_checked("The table of offsets", 136, f"it has more than {_MAX_TABLE} bytes")
        return
    table = pieces(_HEADER.sizeof(), length, "The table of offsets")
    last, first_block, ascends, count = 0, None, True, 0
    while piece := (yield from table.next()):
        for offset in big_endian_u64(piece[: len(piece) & ~7]):
            ascends = ascends and offset >= last
            last = offset
            if count == 0:
                first_block = offset
            count += 1
    if not ascends:
        notes.unsafe("corrupt", "The table of offsets does not ascend", 136)
    if header.blocks and first_block is not None:
        notes.start(_guest_head(notes, first_block))
    size = yield from file_size()
    if count * 8 < length:
        notes.unsafe("table-outside", "The table of offsets ends past the end of the file", 136)
    elif last > size:
        notes.unsafe("data-outside", "The blocks end past the end of the file", 136)


def _guest_head(notes: Notes, offset: int) -> Steps[None]:
    data = yield from read(offset, GUEST_HEAD * 2, "The first block")
    try:
        notes.guest_head(None, zlib.decompressobj().decompress(data, GUEST_HEAD))
    except zlib.error:
        notes.unsafe("corrupt", "The first block is not compressed as it should be", offset)
