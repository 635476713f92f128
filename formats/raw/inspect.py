"""Inspecting a raw disk: the partition tables that it begins with, MBR and GPT."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

from imgtool.errors import CorruptImage
from imgtool.formats.raw import schema
from imgtool.inspection import Notes, Steps, file_size, pieces, read
from imgtool.schema.fields import parse

_SECTOR = 512
#: Where a GPT header may be: disks have sectors of either size.
_SECTOR_SIZES = (512, 4096)
#: What a table of partitions may take; all known tools make it 16 KiB.
_MAX_ENTRIES = 1 << 20

_ACTIVE = 0x80
#: What the protective entry's first sector is in cylinders, heads and sectors.
_PROTECTIVE_CHS = b"\x00\x02\x00"


def inspect(notes: Notes) -> Steps[None]:
    """Judge the partition tables of a raw disk, if it has any."""
    head = yield from read(0, 4096 + _SECTOR, "The partition tables")
    protected = False
    if head[510:512] == schema.BOOT_SIGNATURE:
        mbr = parse(schema.MBR, head[:_SECTOR], "The master boot record")
        used = [(index, entry) for index, entry in enumerate(mbr.entries) if entry.type]
        plausible = bool(used) and all(entry.flags in (0, _ACTIVE) for entry in mbr.entries)
        file_system = _file_system(head)
        if file_system is not None and not plausible:
            notes.contents.append(file_system)
        else:
            protected = any(entry.type == schema.PROTECTIVE for _, entry in used)
            if plausible and not protected:
                notes.contents.append("mbr")
            _judge_mbr(notes, mbr, used, protected)
            notes.start(_mbr_partitions(notes, [entry for _, entry in used]))
    for sector in _SECTOR_SIZES:
        if head[sector : sector + 8] == schema.GPT_MAGIC:
            notes.contents.append("gpt")
            yield from _gpt(notes, head[sector : sector + _SECTOR], sector)
            break
    else:
        if protected:
            notes.contents.append("gpt")
            notes.unsafe("gpt-missing", "Its MBR protects a GPT, and there is none", _SECTOR)


def _file_system(head: bytes) -> str | None:
    """The file system whose boot sector this is, which has its own use for an MBR's places."""
    boot = parse(schema.BOOT_SECTOR, head, "The boot sector")
    if boot.jump[:1] != b"\xe9" and (boot.jump[:1] != b"\xeb" or boot.jump[2:] != b"\x90"):
        return None
    if boot.oem == b"EXFAT   ":
        return "exfat"
    if boot.sector_size not in (512, 1024, 2048, 4096):
        return None
    if boot.oem == b"NTFS    ":
        return "ntfs"
    return "fat" if boot.fats in (1, 2) and boot.media >= 0xF0 else None


def _judge_mbr(notes: Notes, mbr: Any, used: list[tuple[int, Any]], protected: bool) -> None:
    for index, entry in enumerate(mbr.entries):
        offset = schema.MBR.boot_code.sizeof() + index * schema.MBR_ENTRY.sizeof()
        if entry.flags not in (0, _ACTIVE):
            notes.unsafe("mbr-flags", "A partition of the MBR has unknown flags", offset)
        if entry.type == schema.PROTECTIVE:
            if entry.first_lba != 1:
                notes.unsafe(
                    "mbr-protective", "The MBR's protection of a GPT begins elsewhere", offset
                )
            elif entry.first_chs != _PROTECTIVE_CHS:
                notes.warn(
                    "mbr-protective-chs",
                    "The MBR's protection of a GPT begins elsewhere by cylinder, head and sector",
                    offset,
                )
    if protected and [index for index, _ in used] != [0]:
        notes.unsafe("mbr-hybrid", "The MBR has partitions beside the one that protects a GPT", 446)
    if not used:
        notes.warn("mbr-empty", "It has a boot sector and no partitions", 446)


def _mbr_partitions(notes: Notes, used: list[Any]) -> Steps[None]:
    size = yield from file_size()
    ranges = [
        (entry.first_lba, entry.first_lba + entry.sectors)
        for entry in used
        if entry.type != schema.PROTECTIVE
    ]
    _judge_ranges(notes, ranges, _SECTOR, size, 446)


def _judge_ranges(
    notes: Notes, ranges: list[tuple[int, int]], sector: int, size: int, offset: int
) -> None:
    """Judge partitions, each from one sector up to another."""
    for _, end in ranges:
        if end * sector > size:
            notes.unsafe("partition-outside", "A partition ends past the end of the disk", offset)
    for (_, end), (start, _) in itertools.pairwise(sorted(ranges)):
        if start < end:
            notes.warn("partition-overlap", "Two partitions overlap", offset)


def _gpt(notes: Notes, data: bytes, sector: int) -> Steps[None]:
    header = yield from _gpt_header(notes, data, sector, sector)
    if header is None:
        return
    if header.own_lba != 1:
        notes.unsafe("gpt-header", "The GPT header says that it lies elsewhere", sector)
    # The copy lies ahead, so it is asked for before anything else is waited for.
    notes.start(_gpt_copy(notes, header, sector))
    length = header.entry_count * header.entry_size
    if header.entry_size < schema.GPT_ENTRY.sizeof() or length > _MAX_ENTRIES:
        notes.unsafe(
            "gpt-table",
            f"The GPT has {header.entry_count} entries of {header.entry_size} bytes",
            sector,
        )
        return
    ranges, crc = yield from _gpt_entries(header, sector)
    if crc != header.entries_crc:
        notes.unsafe(
            "gpt-table-crc", "The GPT's entries have a wrong checksum", header.entries_lba * sector
        )
        return
    for start, end in ranges:
        if not header.first_usable <= start < end <= header.last_usable + 1:
            notes.unsafe(
                "gpt-partition",
                "A partition of the GPT lies outside the usable sectors",
                header.entries_lba * sector,
            )
    size = yield from file_size()
    _judge_ranges(notes, ranges, sector, size, header.entries_lba * sector)


def _gpt_header(notes: Notes, data: bytes, offset: int, sector: int) -> Steps[Any]:
    """Parse a header; None if it is wrong, which is noted."""
    header = parse(schema.GPT_HEADER, data, "The GPT header", offset)
    if not schema.GPT_HEADER.sizeof() <= header.header_size <= sector:
        notes.unsafe("gpt-header", f"The GPT header has {header.header_size} bytes", offset)
        return None
    if header.header_size > len(data):
        data = yield from read(offset, header.header_size, "The GPT header")
    checked = data[:16] + bytes(4) + data[20 : header.header_size]
    if zlib.crc32(checked) != header.header_crc:
        notes.unsafe("gpt-header-crc", "The GPT header has a wrong checksum", offset)
        return None
    return header


def _gpt_entries(header: Any, sector: int) -> Steps[tuple[list[tuple[int, int]], int]]:
    """The partitions, each from one sector up to another, and the checksum of the table."""
    step, known = header.entry_size, schema.GPT_ENTRY.sizeof()
    table = pieces(header.entries_lba * sector, header.entry_count * step, "The GPT's entries")
    found: list[tuple[int, int]] = []
    crc, rest = 0, b""
    while piece := (yield from table.next()):
        crc = zlib.crc32(piece, crc)
        rest += piece
        whole = len(rest) - len(rest) % step
        for start in range(0, whole, step):
            data = rest[start : start + known]
            if any(data[:16]):
                entry = parse(schema.GPT_ENTRY, data, "A GPT entry")
                found.append((entry.first_lba, entry.last_lba + 1))
        rest = rest[whole:]
    return found, crc


def _gpt_copy(notes: Notes, header: Any, sector: int) -> Steps[None]:
    """The second header, at the end of the disk, which says the same in other places."""
    offset = header.other_lba * sector
    data = yield from read(offset, schema.GPT_HEADER.sizeof(), "The second GPT header")
    size = yield from file_size()
    try:
        copy = parse(schema.GPT_HEADER, data, "The second GPT header", offset)
    except CorruptImage:
        # An image that was cut or grown after it was partitioned, as many are that clouds use.
        notes.warn("gpt-backup", "There is no second GPT header where there should be", offset)
        return
    if (copy.disk, copy.entries_crc) != (header.disk, header.entries_crc):
        notes.unsafe("gpt-backup-differs", "The second GPT is another one than the first", offset)
    elif offset + sector < size - sector:
        notes.warn("gpt-backup", "The second GPT header is not at the end of the disk", offset)
