"""iso9660: images of optical discs, ISO 9660 (ECMA-119) and UDF (ECMA-167).

They are read as raw disks; what makes them known lies behind the 32 KiB that are left to systems.
"""

from __future__ import annotations

from construct import Bytes, Const, Int8ub, Int16ul, Int32ul, Padding, Struct

from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.schema.fields import parse
from imgtool.units import align_up

_START = 32 << 10
_BLOCK = 2048
_MAX_DESCRIPTORS = 16
_PRIMARY, _BOOT, _END = 1, 0, 255
_UDF = (b"NSR02", b"NSR03")

_DESCRIPTOR = Struct(
    "type" / Int8ub,
    "id" / Const(b"CD001"),
    "version" / Int8ub,
    Padding(73),
    "blocks" / Int32ul,
    Padding(44),
    "block_size" / Int16ul,
)
_BOOT_RECORD = Struct(Bytes(7), "system" / Bytes(32))


def probe(head: bytes, tail: bytes) -> int:
    """A volume descriptor; QEMU does not know it, so what it does know goes first."""
    ids = {head[place + 1 : place + 6] for place in range(_START, len(head), _BLOCK)}
    return 40 if ids & {b"CD001", *_UDF} else 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge the volume descriptors, and that the file is as long as the volume."""
    length = _MAX_DESCRIPTORS * _BLOCK
    data = yield from read(_START, length, "The volume descriptors")
    volume = 0
    kinds = []
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        if block[1:6] in _UDF:
            kinds.append("UDF")
        elif block[1:6] == b"CD001" and len(block) >= _DESCRIPTOR.sizeof():
            descriptor = parse(_DESCRIPTOR, block, "A volume descriptor", _START + start)
            if descriptor.type == _PRIMARY and not volume:
                kinds.append("ISO 9660")
                volume = descriptor.blocks * descriptor.block_size
                if descriptor.block_size not in (512, 1024, 2048):
                    notes.unsafe(
                        "corrupt", f"Its blocks have {descriptor.block_size} bytes", _START + start
                    )
            elif descriptor.type == _BOOT and b"EL TORITO" in block[7:39]:
                notes.feature("El Torito")
    notes.variant = " and ".join(dict.fromkeys(kinds)) or None
    size = yield from file_size()
    notes.virtual_size = align_up(size, 512)
    if volume > size:
        notes.unsafe("data-outside", "The volume is larger than the file", _START)
