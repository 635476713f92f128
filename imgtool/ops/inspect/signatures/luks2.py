"""luks2: LUKS 2 volumes, which QEMU reads as raw.

Source: the LUKS2 On-Disk Format Specification; big-endian.
"""

from __future__ import annotations

import hashlib
from typing import Any

from construct import Bytes, Const, Int16ub, Int64ub, Struct

from imgtool.inspection import Notes, Steps, file_size, pieces, read_exact
from imgtool.schema.fields import parse
from imgtool.units import align_up

_MAGIC = b"LUKS\xba\xbe"
_VERSION = 2
_BINARY = 4096
#: What a header with its JSON may take, in all: a power of two between these.
_MIN_HEADER, _MAX_HEADER = 16 << 10, 4 << 20
_ALGORITHMS = ("sha1", "sha256", "sha512")

_HEADER = Struct(
    "magic" / Const(_MAGIC),
    "version" / Int16ub,
    "header_size" / Int64ub,
    "sequence" / Int64ub,
    "label" / Bytes(48),
    "algorithm" / Bytes(32),
    "salt" / Bytes(64),
    "uuid" / Bytes(40),
    "subsystem" / Bytes(48),
    "header_offset" / Int64ub,
    "padding" / Bytes(184),
    "checksum" / Bytes(64),
)
_CHECKSUM = slice(448, 512)


def probe(head: bytes, tail: bytes) -> int:
    """The magic and any version but 1; QEMU does not know it, so what it does know goes first."""
    return 40 if head[:6] == _MAGIC and head[6:8] != b"\0\1" else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the binary header, and the checksum of it and the JSON behind it."""
    notes.encryption = "luks2"
    notes.variant = "version 2"
    data = yield from read_exact(0, _BINARY, "The LUKS header")
    header = parse(_HEADER, data, "The LUKS header")
    if header.version != _VERSION:
        notes.unsafe("unsupported-feature", f"It has the unknown version {header.version}", 6)
        return
    if header.header_offset:
        notes.unsafe("corrupt", "The LUKS header says that it lies elsewhere", 256)
    length = header.header_size
    if not _MIN_HEADER <= length <= _MAX_HEADER or length & (length - 1):
        notes.unsafe("corrupt", f"The LUKS header has {length} bytes", 8)
        return
    algorithm = header.algorithm.split(b"\0", 1)[0].decode("ascii", "replace")
    if algorithm not in _ALGORITHMS:
        notes.unsafe("unsupported-feature", "The LUKS header has an unknown checksum", 72)
        return
    digest = yield from _digest(data, length, algorithm)
    if header.checksum[: len(digest)] != digest:
        notes.unsafe("luks-checksum", "The LUKS header has a wrong checksum", _CHECKSUM.start)
    # As QEMU has it, which sees no more in it than a raw disk.
    size = yield from file_size()
    notes.virtual_size = align_up(size, 512)


def _digest(data: bytes, length: int, algorithm: str) -> Steps[bytes]:
    empty = bytes(_CHECKSUM.stop - _CHECKSUM.start)
    found: Any = hashlib.new(algorithm, usedforsecurity=False)
    found.update(data[: _CHECKSUM.start] + empty + data[_CHECKSUM.stop :])
    json = pieces(_BINARY, length - _BINARY, "The LUKS header's JSON")
    while piece := (yield from json.next()):
        found.update(piece)
    digest: bytes = found.digest()
    return digest
