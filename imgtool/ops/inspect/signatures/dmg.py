"""dmg: Apple's disk images (UDIF), which have all that makes them known at their end; big-endian.

QEMU takes a file for one by its name alone. Only the trailer is judged here: its lists of blocks
are in a property list, and that is not read.
"""

from __future__ import annotations

from construct import Bytes, Const, Int32ub, Int64ub, Struct

from imgtool.inspection import Notes, Steps, file_size, read_exact
from imgtool.schema.fields import parse

_TRAILER_LENGTH = 512

_TRAILER = Struct(
    "magic" / Const(b"koly"),
    "version" / Int32ub,
    "header_size" / Int32ub,
    "flags" / Int32ub,
    "running_offset" / Int64ub,
    "data_offset" / Int64ub,
    "data_length" / Int64ub,
    "resource_offset" / Int64ub,
    "resource_length" / Int64ub,
    "segment" / Bytes(24),
    "data_checksum" / Bytes(136),
    "list_offset" / Int64ub,
    "list_length" / Int64ub,
    "reserved" / Bytes(120),
    "checksum" / Bytes(136),
    "variant" / Int32ub,
    "sectors" / Int64ub,
)


def probe(head: bytes, tail: bytes) -> int:
    """The trailer's magic, its version and its length."""
    return 40 if tail[-512:-500] == b"koly\0\0\0\4\0\0\2\0" else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the trailer."""
    size = yield from file_size()
    offset = size - _TRAILER_LENGTH
    data = yield from read_exact(offset, _TRAILER_LENGTH, "The trailer")
    trailer = parse(_TRAILER, data, "The trailer", offset)
    notes.virtual_size = trailer.sectors * 512
    for what, start, length in (
        ("data", trailer.data_offset, trailer.data_length),
        ("resources", trailer.resource_offset, trailer.resource_length),
        ("property list", trailer.list_offset, trailer.list_length),
    ):
        if start + length > offset:
            notes.unsafe("table-outside", f"Its {what} would lie past the trailer", offset)
    notes.not_checked("The lists of blocks", trailer.list_offset, "inspect does not read them")
