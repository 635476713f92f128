"""qcow: version 1 of QEMU's copy-on-write format; big-endian."""

from __future__ import annotations

from typing import Any

from construct import Const, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from imgtool.codecs import inflate
from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.inspection.filenames import MAX_NAME
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse
from imgtool.units import div_round_up

_MAGIC = b"QFI\xfb"
_VERSION = 1
_COMPRESSED = 1 << 63

_HEADER = Struct(
    "magic" / Const(_MAGIC),
    "version" / Int32ub,
    "backing_offset" / Int64ub,
    "backing_size" / Int32ub,
    "time" / Int32ub,
    "size" / Int64ub,
    "cluster_bits" / Int8ub,
    "l2_bits" / Int8ub,
    "padding" / Int16ub,
    "crypt_method" / Int32ub,
    "l1_offset" / Int64ub,
)


def probe(head: bytes, tail: bytes) -> int:
    """The magic that it shares with qcow2, and the version."""
    return 100 if head[:4] == _MAGIC and int.from_bytes(head[4:8], "big") == _VERSION else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header, the backing file that it names, and where its L1 table is."""
    data = yield from read(0, _HEADER.sizeof(), "The header")
    header = parse(_HEADER, data, "The header")
    notes.variant = "version 1"
    notes.virtual_size = header.size
    notes.warn("old-format", "Nothing but old versions of QEMU writes this format")
    if header.backing_offset:
        if header.backing_size > MAX_NAME:
            notes.unsafe("backing-file", "It has a backing file, whose name is too long", 16)
        else:
            what = "The backing file name"
            name = yield from read(header.backing_offset, header.backing_size, what)
            text = name.decode("utf-8", "surrogateescape")
            notes.file("backing-file", text, offset=header.backing_offset)
            notes.unsafe("backing-format", "The format of its backing file is not recorded", 8)
    if header.crypt_method:
        notes.encryption = "aes" if header.crypt_method == 1 else "unknown"
        if header.crypt_method == 1:
            notes.warn("weak-encryption", "It has the old AES encryption, which is weak", 36)
        else:
            notes.unsafe("unsupported-feature", "It has an unknown encryption", 36)
    if not 9 <= header.cluster_bits <= 16 or not 6 <= header.l2_bits <= 13:
        notes.unsafe(
            "corrupt",
            f"Its clusters or tables have 2^{header.cluster_bits} or 2^{header.l2_bits}",
            32,
        )
        return
    entries = div_round_up(header.size, 1 << (header.cluster_bits + header.l2_bits))
    if header.size < 2 or entries > (1 << 31) // 8:
        notes.unsafe("corrupt", f"Its size of {header.size} bytes can't be", 24)
        return
    notes.start(_inside(notes, header.l1_offset, entries * 8))
    pointers = Pointers("An L2 table", "table", 8, "big", length=8 << header.l2_bits)
    notes.start(scan(notes, header.l1_offset, entries * 8, "The L1 table", pointers))
    if not header.crypt_method:
        yield from _guest_head(notes, header)


def _inside(notes: Notes, offset: int, length: int) -> Steps[None]:
    size = yield from file_size()
    if offset + length > size:
        notes.unsafe("table-outside", "The L1 table ends past the end of the file", offset)


def _guest_head(notes: Notes, header: Any) -> Steps[None]:
    data = yield from read(header.l1_offset, 8, "The L1 table")
    table = int.from_bytes(data, "big")
    if not table or table & _COMPRESSED:
        return
    data = yield from read(table, 8, "The first L2 table")
    entry = int.from_bytes(data, "big")
    what = "The first cluster of the disk"
    if entry & _COMPRESSED:
        shift = 63 - header.cluster_bits
        offset = entry & ((1 << shift) - 1)
        length = entry >> shift & ((1 << header.cluster_bits) - 1)
        data = yield from read(offset, length, what)
        notes.guest_head(None, inflate(data, GUEST_HEAD))
    elif entry:
        data = yield from read(entry, min(GUEST_HEAD, 1 << header.cluster_bits), what)
        notes.guest_head(entry, data)
