"""Inspecting a raw disk: what it begins with, above all partition tables, MBR and GPT."""

from __future__ import annotations

from typing import Any

from imgtool.formats.raw import schema
from imgtool.formats.raw.contents import file_type
from imgtool.formats.raw.gpt import inspect_gpt, judge_ranges
from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.schema.fields import parse

_SECTOR = 512
#: Where a GPT header may be: disks have sectors of either size.
_SECTOR_SIZES = (512, 4096)

_ACTIVE = 0x80
#: What the protective entry's first sector is in cylinders, heads and sectors.
_PROTECTIVE_CHS = b"\x00\x02\x00"


def inspect(notes: Notes) -> Steps[None]:
    """Judge the partition tables of a raw disk, if it has any, and say what else it may be."""
    head = yield from read(0, 4096 + _SECTOR, "The partition tables")
    known = file_type(head)
    if known is not None:
        notes.contents.append(known)
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
    gpts = [size for size in _SECTOR_SIZES if head[size:].startswith(schema.GPT_MAGIC)]
    if gpts:
        _judge_gpts(notes, gpts, protected)
        yield from inspect_gpt(notes, head[gpts[0] : gpts[0] + _SECTOR], gpts[0])
    elif protected:
        notes.contents.append("gpt")
        notes.unsafe("gpt-missing", "Its MBR protects a GPT, and there is none", _SECTOR)


def _judge_gpts(notes: Notes, gpts: list[int], protected: bool) -> None:
    """Judge what is beside a GPT, by the sizes of sector for which there is one."""
    if "mbr" in notes.contents:
        notes.unsafe("mbr-hybrid", "The MBR has partitions of its own, beside a GPT", 446)
    elif not protected:
        # Linux does not look at it then, and others do.
        notes.warn("gpt-unprotected", "Its GPT is not protected by an MBR", 446)
    if len(gpts) > 1:
        notes.unsafe("gpt-header", "It has a GPT for either size of sector", gpts[1])
    notes.contents.append("gpt")


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
    judge_ranges(notes, ranges, _SECTOR, size, 446)
