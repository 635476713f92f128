"""Inspecting a GPT, the first and the second. Source: UEFI specification, "GPT Disk Layout"."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

from imgtool.formats.raw import schema
from imgtool.inspection import Notes, Steps, file_size, pieces, read
from imgtool.schema.fields import parse

#: What a table of partitions may take; all known tools make it 16 KiB.
_MAX_ENTRIES = 1 << 20

#: What the first and the second header have in common: all but where they and their tables are.
_COMMON = (
    "revision", "header_size", "first_usable", "last_usable", "disk", "entry_count", "entry_size",
    "entries_crc",
)  # fmt: skip


def inspect_gpt(notes: Notes, data: bytes, sector: int) -> Steps[None]:
    """Judge both GPTs of a disk whose first header, behind the first sector, is ``data``."""
    header = yield from _header(notes, data, sector, sector, "The GPT header")
    if header is None:
        return
    if header.own_lba != 1:
        notes.unsafe("gpt-header", "The GPT header says that it lies elsewhere", sector)
    # The copy lies ahead, so it is asked for before anything else is waited for.
    notes.start(_copies(notes, header, sector))
    if not _is_plausible(header):
        notes.unsafe(
            "gpt-table",
            f"The GPT has {header.entry_count} entries of {header.entry_size} bytes",
            sector,
        )
        return
    ranges = yield from _entries(notes, header, sector, "The GPT's entries")
    place = header.entries_lba * sector
    for start, end in ranges:
        if not header.first_usable <= start < end <= header.last_usable + 1:
            notes.unsafe(
                "gpt-partition", "A partition of the GPT lies outside the usable sectors", place
            )
    size = yield from file_size()
    judge_ranges(notes, ranges, sector, size, place)


def judge_ranges(
    notes: Notes, ranges: list[tuple[int, int]], sector: int, size: int, offset: int
) -> None:
    """Judge partitions, each from one sector up to another."""
    for _, end in ranges:
        if end * sector > size:
            notes.unsafe("partition-outside", "A partition ends past the end of the disk", offset)
    for (_, end), (start, _) in itertools.pairwise(sorted(ranges)):
        if start < end:
            notes.warn("partition-overlap", "Two partitions overlap", offset)


def _header(notes: Notes, data: bytes, offset: int, sector: int, what: str) -> Steps[Any]:
    """Parse a header; None if it is wrong, which is noted."""
    header = parse(schema.GPT_HEADER, data, what, offset)
    if not schema.GPT_HEADER.sizeof() <= header.header_size <= sector:
        notes.unsafe("gpt-header", f"{what} has {header.header_size} bytes", offset)
        return None
    if header.header_size > len(data):
        data = yield from read(offset, header.header_size, what)
    checked = data[:16] + bytes(4) + data[20 : header.header_size]
    if zlib.crc32(checked) != header.header_crc:
        notes.unsafe("gpt-header-crc", f"{what} has a wrong checksum", offset)
        return None
    return header


def _is_plausible(header: Any) -> bool:
    length: int = header.entry_count * header.entry_size
    return schema.GPT_ENTRY.sizeof() <= header.entry_size and length <= _MAX_ENTRIES


def _entries(notes: Notes, header: Any, sector: int, what: str) -> Steps[list[tuple[int, int]]]:
    """Judge the table of a header; the partitions in it, each from one sector up to another."""
    step, known = header.entry_size, schema.GPT_ENTRY.sizeof()
    place, length = header.entries_lba * sector, header.entry_count * step
    if place < (header.last_usable + 1) * sector and header.first_usable * sector < place + length:
        notes.unsafe("gpt-table", f"{what} lie where partitions may lie", place)
    table = pieces(place, length, what)
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
    if crc != header.entries_crc:
        notes.unsafe("gpt-table-crc", f"{what} have a wrong checksum", place)
        return []
    return found


def _copies(notes: Notes, header: Any, sector: int) -> Steps[None]:
    """Judge the second GPT, where the first says that it is, and at the end of the disk.

    Whoever finds the first one damaged looks at the end, whatever that says.
    """
    place = header.other_lba * sector
    data = yield from read(place, sector, "The second GPT header")
    there = data.startswith(schema.GPT_MAGIC)
    if there:
        yield from _copy(notes, header, data, place, sector)
    size = yield from file_size()
    end = size - size % sector - sector
    if not there:
        # An image that was cut or grown after it was partitioned, as many are that clouds use.
        notes.warn("gpt-backup", "There is no second GPT header where there should be", place)
    elif place < end:
        notes.warn("gpt-backup", "The second GPT header is not at the end of the disk", place)
    if end not in (place, sector):
        data = yield from read(max(0, end), sector, "The last sector of the disk")
        if data.startswith(schema.GPT_MAGIC):
            yield from _copy(notes, header, data, end, sector)


def _copy(notes: Notes, first: Any, data: bytes, offset: int, sector: int) -> Steps[None]:
    """Judge a second GPT, which says the same in other places."""
    copy = yield from _header(notes, data, offset, sector, "The second GPT header")
    if copy is None:
        return
    if copy.own_lba * sector != offset:
        notes.unsafe("gpt-header", "The second GPT header says that it lies elsewhere", offset)
    if copy.other_lba != 1 or any(copy[field] != first[field] for field in _COMMON):
        notes.unsafe("gpt-backup-differs", "The second GPT is another one than the first", offset)
    elif _is_plausible(copy):
        yield from _entries(notes, copy, sector, "The second GPT's entries")
