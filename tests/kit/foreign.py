"""Small images of the formats that imgtool only inspects, made byte by byte from specifications.

Independent of imgtool: nothing of it is imported here. Each has a disk of 4 MiB, whose first bytes
are ``guest``.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import uuid
import zlib
from collections.abc import Callable

from tests.kit.crc32c import slow_crc32c

SIZE = 4 << 20
SECTORS = SIZE // 512
GUEST = b"\xfa\xb8" + b"guest's first bytes".ljust(510, b"\x90")

PARENT_ID = uuid.UUID("12345678-9abc-4def-8123-456789abcdef")


def _at(*parts: tuple[int, bytes]) -> bytes:
    image = bytearray(max(offset + len(data) for offset, data in parts))
    for offset, data in parts:
        image[offset : offset + len(data)] = data
    return bytes(image)


# Raw disks


def mbr(*entries: tuple[int, int, int, int], code: bytes = b"", chs: bytes = b"\0\2\0") -> bytes:
    """A boot sector; each entry is ``(flags, type, first sector, sectors)``."""
    table = b"".join(
        struct.pack("<B3sB3sII", flags, chs, kind, b"\xfe\xff\xff", first, count)
        for flags, kind, first, count in entries
    )
    return code.ljust(446, b"\0")[:446] + table.ljust(64, b"\0") + b"\x55\xaa"


def mbr_disk() -> bytes:
    return _at((0, mbr((0x80, 0x83, 2048, 4096))), (SIZE - 1, b"\0"))


def gpt_header(own: int, other: int, entries: int, table: bytes, **changes: int) -> bytes:
    values = {
        "first": 34, "last": SECTORS - 34, "count": len(table) // 128, "size": 128,
        "crc": zlib.crc32(table), "revision": 0x10000, **changes,
    }  # fmt: skip
    body = struct.pack(
        "<QQQQ16sQIII", own, other, values["first"], values["last"], b"D" * 16, entries,
        values["count"], values["size"], values["crc"],
    )  # fmt: skip
    start = struct.pack("<8sIII", b"EFI PART", values["revision"], 92, 0) + bytes(4)
    crc = zlib.crc32(start + body)
    return start[:16] + struct.pack("<I", crc) + start[20:] + body


def gpt_disk(*partitions: tuple[int, int], **changes: int) -> bytes:
    """A disk with a GPT, first and second; ``changes`` are to both headers."""
    table = b"".join(
        struct.pack("<16s16sQQQ72s", b"T" * 16, b"I" * 16, first, last, 0, b"")
        for first, last in partitions or ((64, 1000), (1024, 2047))
    ).ljust(128 * 128, b"\0")
    return _at(
        (0, mbr((0, 0xEE, 1, SECTORS - 1))),
        (512, gpt_header(1, SECTORS - 1, 2, table, **changes)),
        (1024, table),
        (SIZE - 33 * 512, table),
        (
            SIZE - 512,
            gpt_header(SECTORS - 1, 1, SECTORS - 33, table, **changes).ljust(512, b"\0"),
        ),
    )


def gpt_copy(
    own: int = SECTORS - 1, other: int = 1, entries: int = SECTORS - 33, **changes: int
) -> bytes:
    """A disk whose second GPT header is another one, with a sound checksum."""
    disk = gpt_disk()
    header = gpt_header(own, other, entries, disk[1024 : 34 * 512], **changes)
    return disk[:-512] + header.ljust(512, b"\0")


# VMware

DESCRIPTION = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID={parent}
createType="{kind}"
{more}
# Extent description
{extents}

# The Disk Data Base
ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def description(
    kind: str = "monolithicSparse",
    extents: str = f'RW {SECTORS} SPARSE "disk.vmdk"',
    parent: str = "ffffffff",
    more: str = "",
) -> bytes:
    return DESCRIPTION.format(kind=kind, extents=extents, parent=parent, more=more).encode()


def vmdk_header(**changes: int) -> bytes:
    values = {
        "version": 1, "flags": 3, "capacity": SECTORS, "grain": 128, "description": 1, "length": 20,
        "entries": 512, "second": 21, "directory": 26, "overhead": 128, "compression": 0, **changes,
    }  # fmt: skip
    *numbers, compression = values.values()
    return struct.pack("<4sIIQQQQIQQQ", b"KDMV", *numbers) + struct.pack(
        "<B4sH433x", 0, b"\n \r\n", compression
    )


def vmdk(guest: bytes = GUEST, text: bytes | None = None, **changes: int) -> bytes:
    """A sparse disk with one grain."""
    return _at(
        (0, vmdk_header(**changes)),
        (512, description() if text is None else text),
        (26 * 512, struct.pack("<I", 27)),
        (27 * 512, struct.pack("<I", 128).ljust(512 * 4, b"\0")),
        (128 * 512, guest.ljust(65536, b"\0")),
    )


def vmdk_stream(guest: bytes = GUEST, text: bytes | None = None, **footer: int) -> bytes:
    """A stream-optimized disk with one grain; ``footer`` changes the footer alone."""
    same = {"flags": 0x30001, "compression": 1, "second": 0}
    packed = zlib.compress(guest.ljust(65536, b"\0"))
    grain = struct.pack("<QI", 0, len(packed)) + packed
    grain = grain.ljust(-(-len(grain) // 512) * 512, b"\0")
    table_at = 128 + len(grain) // 512
    marker = struct.Struct("<QII496x").pack
    return _at(
        (0, vmdk_header(directory=(1 << 64) - 1, **same)),
        (512, description("streamOptimized") if text is None else text),
        (128 * 512, grain),
        (table_at * 512, marker(4, 0, 1) + struct.pack("<I", 128).ljust(2048, b"\0")),
        ((table_at + 5) * 512, marker(1, 0, 2) + struct.pack("<I", table_at + 1).ljust(512, b"\0")),
        ((table_at + 7) * 512, marker(1, 0, 3)),
        ((table_at + 8) * 512, vmdk_header(**{"directory": table_at + 6, **same, **footer})),
        ((table_at + 9) * 512, marker(0, 0, 0)),
    )


# VirtualBox


def vdi(guest: bytes = GUEST, **changes: int | bytes) -> bytes:
    values = {
        "version": 0x10001, "header": 400, "kind": 1, "flags": 0, "map": 512, "data": 1024,
        "sector": 512, "size": SIZE, "block": 1 << 20, "extra": 0, "blocks": 4, "used": 1,
        "image": b"I" * 16, "snapshot": b"S" * 16, "link": bytes(16), "parent": bytes(16),
        **changes,
    }  # fmt: skip
    header = struct.pack(
        "<64sIIIII256sII12xI4xQIIII16s16s16s16s", b"<<< a disk image >>>\n", 0xBEDA107F,
        *(values[name] for name in ("version", "header", "kind", "flags")), b"",
        *(values[name] for name in list(values)[4:]),
    )  # fmt: skip
    return _at(
        (0, header), (512, struct.pack("<IIII", 0, *[0xFFFFFFFF] * 3)), (1024, guest),
        (1024 + (1 << 20) - 1, b"\0"),
    )  # fmt: skip


# Virtual PC


def vhd_footer(kind: int, data_offset: int, **changes: int) -> bytes:
    values = {"version": 0x10000, "size": SIZE, "saved": 0, **changes}
    footer = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB427x", b"conectix", 2, values["version"], data_offset, 0, b"test",
        0x10000, b"Wi2k", SIZE, values["size"], 120, 4, 17, kind, 0, b"U" * 16, values["saved"],
    )  # fmt: skip
    return footer[:64] + struct.pack(">I", ~sum(footer) & 0xFFFFFFFF) + footer[68:]


def vhd_fixed(guest: bytes = GUEST, **changes: int) -> bytes:
    return guest.ljust(SIZE, b"\0") + vhd_footer(2, (1 << 64) - 1, **changes)


def vhd_dynamic(
    guest: bytes = GUEST, *, kind: int = 3, parent: str = "", locator: bytes = b"", **changes: int
) -> bytes:
    """A growing disk with one block; ``kind`` 4 with a parent's name and one locator's."""
    footer = vhd_footer(kind, 512, **changes)
    header = struct.pack(
        ">8sQQIIII16sII512s4sIIIQ", b"cxsparse", (1 << 64) - 1, 2048, 0x10000, 2, 2 << 20, 0,
        PARENT_ID.bytes if kind == 4 else bytes(16), 0, 0, parent.encode("utf-16-be"),
        *((b"W2ru", 512, len(locator), 0, 2560) if locator else (bytes(4), 0, 0, 0, 0)),
    ).ljust(1024, b"\0")  # fmt: skip
    header = header[:36] + struct.pack(">I", ~sum(header) & 0xFFFFFFFF) + header[40:]
    return _at(
        (0, footer), (512, header), (2048, struct.pack(">II", 8, 0xFFFFFFFF).ljust(512, b"\xff")),
        (2560, locator.ljust(512, b"\0")), (4096, b"\xff" * 512), (4608, guest),
        (4608 + (2 << 20), footer),
    )  # fmt: skip


# Hyper-V


_crc32c = functools.cache(slow_crc32c)


def _summed(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", _crc32c(data)) + data[8:]


_GUIDS = {
    "bat": "2dc27766-f623-4200-9d64-115e9bfd4a08",
    "metadata": "8b7ca206-4790-4b9a-b8fe-575f050f886e",
    "parameters": "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
    "size": "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
    "disk": "beca12ab-b2e6-4523-93ef-c309e000c746",
    "physical sector": "cda348c7-445d-4471-9cc9-e9885251c556",
    "sector": "8141bf1d-a96f-4709-ba47-f233a8faab5f",
    "parent": "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
}


def _guid(name: str) -> bytes:
    return uuid.UUID(_GUIDS.get(name, name)).bytes_le


def vhdx_locator(pairs: dict[str, str]) -> bytes:
    body, table = b"", b""
    start = 20 + 12 * len(pairs)
    for key, value in pairs.items():
        words = key.encode("utf-16-le"), value.encode("utf-16-le")
        place = start + len(body)
        table += struct.pack("<IIHH", place, place + len(words[0]), len(words[0]), len(words[1]))
        body += b"".join(words)
    return struct.pack("<16sHH", b"L" * 16, 0, len(pairs)) + table + body


def vhdx(
    guest: bytes = GUEST,
    *,
    parent: dict[str, str] | None = None,
    log: bool = False,
    regions: tuple[tuple[str, int, int], ...] = (),
    items: tuple[tuple[str, bytes, int], ...] = (),
    **changes: int,
) -> bytes:
    """A disk with one block. ``regions`` and ``items`` are further ones, with their flags."""
    values = {"size": SIZE, "block": 1 << 20, "sector": 512, "version": 1, **changes}
    header = struct.pack(
        "<4sIQ16s16s16sHHIQ", b"head", 0, 1, b"F" * 16, b"D" * 16, b"L" * 16 if log else bytes(16),
        0, values["version"], 1 << 20, 1 << 20,
    ).ljust(4096, b"\0")  # fmt: skip
    known = (("bat", 3 << 20, 1), ("metadata", 2 << 20, 1), *regions)
    table = struct.pack("<4sIII", b"regi", 0, len(known), 0) + b"".join(
        struct.pack("<16sQII", _guid(name), offset, 1 << 20, flags) for name, offset, flags in known
    )
    table = _summed(table.ljust(65536, b"\0"))
    has_parent = 2 if parent is not None else 0
    metadata = [
        ("parameters", struct.pack("<II", values["block"], has_parent), 4),
        ("size", struct.pack("<Q", values["size"]), 6),
        ("disk", b"K" * 16, 6),
        ("sector", struct.pack("<I", values["sector"]), 6),
        ("physical sector", struct.pack("<I", 4096), 6),
        *items,
    ]
    if parent is not None:
        metadata.append(("parent", vhdx_locator(parent), 4))
    head = struct.pack("<8s2xH20x", b"metadata", len(metadata))
    body = b""
    for name, data, flags in metadata:
        place = 65536 + len(body)
        head += struct.pack("<16sIII4x", _guid(name), place, len(data), flags)
        body += data
    return _at(
        (0, b"vhdxfile" + "test".encode("utf-16-le")), (64 << 10, _summed(header)),
        (128 << 10, _summed(header)), (192 << 10, table), (256 << 10, table), (2 << 20, head),
        ((2 << 20) + 65536, body), (3 << 20, struct.pack("<Q", 4 << 20 | 6)),
        (4 << 20, guest), ((5 << 20) - 1, b"\0"),
    )  # fmt: skip


# QEMU's older ones


def qed(guest: bytes = GUEST, *, backing: bytes = b"", **changes: int) -> bytes:
    values = {
        "cluster": 4096, "table": 2, "header": 1, "features": 1 if backing else 0, "compatible": 0,
        "autoclear": 0, "l1": 4096, "size": SIZE, "name": 512 if backing else 0,
        "length": len(backing), **changes,
    }  # fmt: skip
    return _at(
        (0, struct.pack("<4sIIIQQQQQII", b"QED\0", *values.values())), (512, backing),
        (4096, struct.pack("<Q", 12288).ljust(8192, b"\0")),
        (12288, struct.pack("<Q", 20480).ljust(8192, b"\0")), (20480, guest.ljust(4096, b"\0")),
    )  # fmt: skip


def qcow(
    guest: bytes = GUEST, *, backing: bytes = b"", compressed: bool = False, **changes: int
) -> bytes:
    values = {
        "version": 1, "name": 48 if backing else 0, "length": len(backing), "time": 0, "size": SIZE,
        "bits": 12, "l2": 9, "padding": 0, "crypt": 0, "l1": 2048, **changes,
    }  # fmt: skip
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = packer.compress(guest.ljust(4096, b"\0")) + packer.flush()
    entry = 1 << 63 | len(packed) << 51 | 8192 if compressed else 8192
    return _at(
        (0, struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", *values.values())), (48, backing),
        (2048, struct.pack(">QQ", 4096, 0)), (4096, struct.pack(">Q", entry).ljust(4096, b"\0")),
        (8192, packed if compressed else guest.ljust(4096, b"\0")),
    )  # fmt: skip


# Others


def parallels(guest: bytes = GUEST, *, extended: bool = True, **changes: int) -> bytes:
    values = {
        "version": 2, "heads": 16, "cylinders": 8, "block": 2048, "entries": 4, "sectors": SECTORS,
        "in use": 0, "data": 2048, "flags": 0, "extension": 0, **changes,
    }  # fmt: skip
    magic = b"WithouFreSpacExt" if extended else b"WithoutFreeSpace"
    return _at(
        (0, struct.pack("<16sIIIIIQIIIQ", magic, *values.values())),
        (64, struct.pack("<I", 1 if extended else 2048)), (1 << 20, guest), ((2 << 20) - 1, b"\0"),
    )  # fmt: skip


def iso(*, head: bytes = b"", udf: bool = False, blocks: int = 64) -> bytes:
    """An optical disc; ``head`` lies in the 32 KiB that are left to systems."""
    primary = struct.pack("<B5sB73xI44xH", 1, b"CD001", 1, blocks, 2048).ljust(2048, b"\0")
    boot = b"\0CD001\1EL TORITO SPECIFICATION".ljust(2048, b"\0")
    end = b"\xffCD001\1".ljust(2048, b"\0")
    more = [b"\0BEA01\1".ljust(2048, b"\0"), b"\0NSR02\1".ljust(2048, b"\0")] if udf else []
    return _at((0, head), (32768, b"".join((primary, boot, end, *more))), (64 * 2048 - 1, b"\0"))


def bochs(*, subtype: bytes = b"Growing", version: int = 0x20000, **changes: int) -> bytes:
    values = {"header": 512, "catalog": 8, "bitmap": 128, "extent": 1 << 19, **changes}
    newer = struct.pack("<I", 0) if version == 0x20000 else b""
    header = struct.pack(
        "<32s16s16sIIIII", b"Bochs Virtual HD Image", b"Redolog", subtype, version, *values.values()
    )
    return _at((0, header + newer + struct.pack("<Q", SIZE)), (512, b"\xff" * 32))


SCRIPT = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"


def cloop(guest: bytes = GUEST, *, blocks: int = 64, block_size: int = 65536) -> bytes:
    packed = [zlib.compress(guest.ljust(65536, b"\0")), *[zlib.compress(bytes(65536))] * 63]
    offsets, place = [], 136 + 65 * 8
    for block in (*packed, b""):
        offsets.append(place)
        place += len(block)
    head = SCRIPT.ljust(128, b"\0") + struct.pack(">II", block_size, blocks)
    return head + struct.pack(">65Q", *offsets) + b"".join(packed)


def dmg(*, head: bytes = b"") -> bytes:
    trailer = struct.pack(">4sIIIQQQQQ", b"koly", 4, 512, 1, 0, 0, 8192, 0, 0).ljust(
        0xD8, b"\0"
    ) + struct.pack(">QQ", 8192, 1024)
    trailer = trailer.ljust(0x1E8, b"\0") + struct.pack(">IQ", 1, SECTORS)
    return head.ljust(8192, b"z") + b"<plist/>".ljust(1024, b"\0") + trailer.ljust(512, b"\0")


def luks2(*, algorithm: bytes = b"sha256", size: int = 16384) -> bytes:
    head = struct.pack(
        ">6sHQQ48s32s64s40s48sQ184s64s", b"LUKS\xba\xbe", 2, size, 1, b"", algorithm, b"s" * 64,
        b"ea0e1979-d4c6-43bc-86c1-30e84ffda137", b"", 0, b"", b"",
    ).ljust(4096, b"\0")  # fmt: skip
    json = b'{"keyslots": {}, "segments": {}}'.ljust(16384 - 4096, b"\0")
    digest = hashlib.sha256(head + json).digest()
    return _at((0, head[:448] + digest + head[480:] + json), (1 << 20, bytes(4096)))


#: Those that name no other file and are sound, by the format that they are.
SAMPLES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "mbr": ("raw", mbr_disk),
    "gpt": ("raw", gpt_disk),
    "vmdk": ("vmdk", vmdk),
    "vmdk-stream": ("vmdk", vmdk_stream),
    "vdi": ("vdi", vdi),
    "vhd-fixed": ("vhd", vhd_fixed),
    "vhd-dynamic": ("vhd", vhd_dynamic),
    "vhdx": ("vhdx", vhdx),
    "qed": ("qed", qed),
    "qcow": ("qcow", qcow),
    "qcow-compressed": ("qcow", lambda: qcow(compressed=True)),
    "parallels": ("parallels", parallels),
    "parallels-plain": ("parallels", lambda: parallels(extended=False)),
    "iso": ("iso9660", iso),
    "iso-hybrid": ("iso9660", lambda: iso(head=mbr((0x80, 0x17, 0, 256)))),
    "udf": ("iso9660", lambda: iso(udf=True)),
    "bochs": ("bochs", bochs),
    "bochs-1": ("bochs", lambda: bochs(version=0x10000)),
    "cloop": ("cloop", cloop),
    "luks2": ("luks2", luks2),
}
