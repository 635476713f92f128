"""Parts of qcow2 images with any values in them: headers changed, entries of tables made."""

from __future__ import annotations

import struct
from typing import Any

from imgtool.formats.qcow2 import schema
from tests.kit.corrupt import fields, patch


def change(image: bytes, **values: Any) -> bytes:
    """Change header fields by the specification's names."""
    for known, base in ((schema.HEADER_V2, 0), (schema.HEADER_V3, 72)):
        mine = {name: values.pop(name) for name in fields(known) if name in values}
        image = patch(image, known, base, **mine)
    assert not values
    return image


def snapshot_entry(
    id_size: int = 0, name_size: int = 0, extra: int = 0, data: bytes = b""
) -> bytes:
    """An entry of the snapshot table: ``data``, or ``n``, fills extra data, id and name."""
    head = struct.pack(">QIHHIIQII", 0, 0, id_size, name_size, 0, 0, 0, 0, extra)
    whole = head + data.ljust(id_size + name_size + extra, b"n")
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def bitmap_entry(
    name: bytes, *, bits: int = 16, kind: int = 1, table: int = 0, entries: int = 0, extra: int = 0
) -> bytes:
    """An entry of the bitmap directory; ``bits`` is the granularity, as a power of two."""
    head = struct.pack(">QIIBBHI", table, entries, 0, kind, bits, len(name), extra)
    whole = head + bytes(extra) + name
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")
