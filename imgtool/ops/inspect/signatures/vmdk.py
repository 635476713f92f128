"""vmdk: VMware's disks: sparse files, streams, and descriptions of what a disk is made of.

Source: VMware's Virtual Disk Format 5.0; little-endian. A sparse file holds its description; a
description alone names the files that hold the data, and whoever opens it opens those.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from imgtool.inspection import Notes, Steps, file_size, read, read_exact
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.tables import Pointers, scan
from imgtool.schema.fields import parse
from imgtool.units import align_up, div_round_up

_SECTOR = 512
_MAGIC = b"KDMV"
#: The older sparse format, of ESX servers, which knows of parents, too.
_ESX_MAGIC = b"COWD"
#: "gdOffset": the real header is in a footer at the end of the stream.
_AT_THE_END = (1 << 64) - 1
_COMPRESSED, _MARKED = 1 << 16, 1 << 17
_KNOWN_FLAGS = 0b111 | _COMPRESSED | _MARKED
_MAX_DESCRIPTION = 1 << 20
_MAX_GRAIN_SECTORS = 2 << 11
_NO_PARENT = "ffffffff"
#: What holds all its data itself.
_WHOLE = ("monolithicsparse", "streamoptimized")

_END_MARKER, _TABLE_MARKER, _FOOTER_MARKER = 0, 1, 3
#: In front of a compressed grain: its first sector in 64 bits, its length in 32.
_GRAIN_HEAD = 12
#: A grain table has 512 entries, so a stream has its first one behind no more grains than that.
_MAX_GRAINS = 520

_HEADER = Struct(
    "magic" / Const(_MAGIC),
    "version" / Int32ul,
    "flags" / Int32ul,
    "capacity" / Int64ul,
    "grain_size" / Int64ul,
    "description_offset" / Int64ul,
    "description_size" / Int64ul,
    "grain_table_entries" / Int32ul,
    "second_directory_offset" / Int64ul,
    "directory_offset" / Int64ul,
    "overhead" / Int64ul,
    "unclean" / Int8ul,
    "line_ends" / Bytes(4),
    "compression" / Int16ul,
)
_MARKER = Struct("sectors" / Int64ul, "size" / Int32ul, "type" / Int32ul)


class _Walk(NamedTuple):
    """What a stream has first: the grain of the disk's first sector, and the first grain table.

    Both are sectors, None where there is none; ``entry`` is what the table begins with.
    """

    first: int | None
    table: int | None
    entry: int


_EXTENT = re.compile(
    r"(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d+)\s+(?P<type>\w+)"
    r'(?:\s+"(?P<name>[^"]*)"(?:\s+\d+)?.*)?',
    re.IGNORECASE,
)
_KEY = re.compile(r"[\w.]+")
#: Where a parent's name is found by QEMU: anywhere, comments included, before the first NUL of the
#: 20 sectors that it reads, however long the header says that the description is.
_HINT = re.compile(r'parentfilenamehint.?"?([^"\n]*)', re.IGNORECASE)
_READ_BY_QEMU = 20 * _SECTOR
#: QEMU reads them behind the header of every sparse file, wherever that says that they are.
_PLACE_FOR_QEMU = _SECTOR


def probe(head: bytes, tail: bytes) -> int:
    """A sparse file's magic; or text whose first line that says something is a version."""
    if head[:4] in (_MAGIC, _ESX_MAGIC):
        return 100
    # As QEMU does: comments and blank lines in front are skipped.
    for line in head.splitlines():
        stripped = line.strip()
        if stripped.startswith(b"#"):
            if b"disk descriptorfile" in stripped.lower():
                return 100
        elif stripped:
            return 100 if re.match(rb"version\s*=\s*[123]\b", stripped, re.IGNORECASE) else 0
    return 0


def inspect(notes: Notes) -> Steps[None]:
    """Judge a sparse file's header, its footer and its description; or a description alone."""
    head = yield from read(0, _SECTOR, "The header")
    if head[:4] == _ESX_MAGIC:
        notes.variant = "vmfsSparse"
        notes.unsafe("vmdk-kind", "It is a part of an ESX server's disk, and no whole one", 0)
        text = yield from read(_PLACE_FOR_QEMU, _READ_BY_QEMU, "The description")
        _name_parents(notes, _text(text), _PLACE_FOR_QEMU)
        return
    if head[:4] == _MAGIC:
        yield from _sparse(notes, head)
        return
    notes.variant = "description"
    text = yield from read(0, _MAX_DESCRIPTION, "The description")
    _describe(notes, text, 0, alone=True)


def _sparse(notes: Notes, head: bytes) -> Steps[None]:
    header = parse(_HEADER, head, "The header")
    compressed = bool(header.flags & _COMPRESSED)
    notes.variant = "streamOptimized" if compressed else "monolithicSparse"
    _judge_header(notes, header, 0)
    notes.virtual_size = header.capacity * _SECTOR
    if compressed:
        notes.feature("compressed grains")
    if header.directory_offset == _AT_THE_END:
        notes.start(_stream(notes, header))
    else:
        notes.start(_guest_head(notes, header))
        notes.start(_directory(notes, header))
    yield from _descriptions(notes, header)


def _descriptions(notes: Notes, header: Any) -> Steps[None]:
    """Judge the description that the header points to, and one where QEMU looks regardless."""
    offset = header.description_offset * _SECTOR
    if offset != _PLACE_FOR_QEMU:
        found = yield from read(_PLACE_FOR_QEMU, _READ_BY_QEMU, "The description")
        if probe(found, b"") or _HINT.search(_text(found)):
            notes.unsafe(
                "vmdk-description",
                "It has a description where its header says that there is none",
                _PLACE_FOR_QEMU,
            )
            _describe(notes, found, _PLACE_FOR_QEMU, alone=False)
        elif not offset:
            notes.warn("vmdk-description", "It has no description of itself", 0)
    if not offset:
        return
    if offset != _PLACE_FOR_QEMU:
        notes.unsafe("vmdk-description", "Its description is not behind its header", offset)
    length = min(max(header.description_size * _SECTOR, _READ_BY_QEMU), _MAX_DESCRIPTION)
    if not header.capacity:
        # It stands for the files that the description names, and QEMU reads on to the end of that.
        length = _MAX_DESCRIPTION
    text = yield from read(offset, length, "The description")
    _describe(notes, text, offset, alone=not header.capacity)


def _judge_header(notes: Notes, header: Any, offset: int) -> None:
    if header.version not in (1, 2, 3):
        notes.unsafe("vmdk-version", f"It has the unknown version {header.version}", offset)
    if header.flags & ~_KNOWN_FLAGS:
        unknown = header.flags & ~_KNOWN_FLAGS
        notes.unsafe("unknown-feature", f"It has the unknown flags {unknown:#x}", offset)
    if not 1 <= header.grain_size <= _MAX_GRAIN_SECTORS or header.grain_size & (
        header.grain_size - 1
    ):
        notes.unsafe("corrupt", f"A grain of it has {header.grain_size} sectors", offset)
    if not 0 < header.grain_table_entries <= 512:
        notes.unsafe(
            "corrupt", f"A grain table of it has {header.grain_table_entries} entries", offset
        )
    if header.compression not in (0, 1):
        notes.unsafe(
            "unknown-feature", f"It has the unknown compression {header.compression}", offset
        )
    if header.capacity > 1 << 54:
        notes.unsafe("corrupt", "Its capacity is more than a disk can have", offset)
    if header.description_size * _SECTOR > _MAX_DESCRIPTION:
        notes.unsafe("corrupt", "Its description is too long", offset)
    if header.unclean:
        notes.warn("dirty", "It was not closed properly", offset)


def _stream(notes: Notes, header: Any) -> Steps[None]:
    walk = _Walk(None, None, 0)
    if header.overhead < 1 << 54:
        walk = yield from _walk(notes, header)
    directory = yield from _footer(notes, header)
    if directory is not None:
        yield from _judge_walk(notes, walk, directory)


def _footer(notes: Notes, header: Any) -> Steps[int | None]:
    """Behind the last grain: a marker, the header once more, a marker of the end; a sector each.

    Returns the sector of the grain directory, None if it is nowhere.
    """
    size = yield from file_size()
    offset = size - 3 * _SECTOR
    if offset < _SECTOR:
        notes.unsafe("vmdk-footer", "It has no footer, where its header says that there is one", 0)
        return None
    data = yield from read_exact(offset, 3 * _SECTOR, "The footer")
    marker = parse(_MARKER, data, "The footer's marker", offset)
    end = parse(_MARKER, data[2 * _SECTOR :], "The marker of the end", offset)
    if (marker.size, marker.type) != (0, _FOOTER_MARKER):
        notes.unsafe("vmdk-footer", "The footer has no marker", offset)
    if (end.sectors, end.size, end.type) != (0, 0, _END_MARKER):
        notes.unsafe("vmdk-footer", "The stream has no marker of its end", offset)
    if any(data[_MARKER.sizeof() : _SECTOR]) or any(data[2 * _SECTOR + _MARKER.sizeof() :]):
        notes.unsafe("vmdk-footer", "There is something between the footer's markers", offset)
    offset += _SECTOR
    if data[_SECTOR : _SECTOR + 4] != _MAGIC:
        notes.unsafe("vmdk-footer", "The footer is no header", offset)
        return None
    footer = parse(_HEADER, data[_SECTOR:], "The footer", offset)
    _judge_header(notes, footer, offset)
    for field in _HEADER.subcons:
        differs = getattr(footer, field.name) != getattr(header, field.name)
        if differs and field.name not in ("directory_offset", "second_directory_offset", "unclean"):
            notes.unsafe("vmdk-footer", f"Footer and header differ in {field.name}", offset)
    if footer.directory_offset == _AT_THE_END:
        notes.unsafe("vmdk-footer", "The footer points to another footer", offset)
    elif footer.directory_offset * _SECTOR >= size:
        notes.unsafe("table-outside", "The grain directory lies past the end of the file", offset)
    else:
        found: int = footer.directory_offset
        return found
    return None


def _directory(notes: Notes, header: Any) -> Steps[None]:
    """Judge the grain directory: where it is, and where its grain tables are."""
    coverage = header.grain_table_entries * header.grain_size
    if not header.capacity or not coverage:
        return
    offset = header.directory_offset * _SECTOR
    length = div_round_up(header.capacity, coverage) * 4
    tables = Pointers(
        "A grain table",
        "table",
        4,
        "little",
        length=header.grain_table_entries * 4,
        step=_SECTOR,
    )
    yield from scan(notes, offset, length, "The grain directory", tables)
    size = yield from file_size()
    if offset + length > size:
        notes.unsafe("table-outside", "The grain directory ends past the end of the file", 0)


def _guest_head(notes: Notes, header: Any) -> Steps[None]:
    """Grain directory, grain table, grain: each entry is a sector, 32 bits."""
    if not header.capacity or header.directory_offset >= 1 << 54:
        return
    place = header.directory_offset
    for what in ("The grain directory", "The first grain table"):
        data = yield from read(place * _SECTOR, 4, what)
        place = int.from_bytes(data, "little")
        # 1 is a grain of zeros.
        if place <= 1:
            return
    yield from _grain(notes, header, place * _SECTOR)


def _grain(notes: Notes, header: Any, offset: int) -> Steps[None]:
    """The grain that a guest sees first, at a host offset."""
    if not header.flags & _COMPRESSED:
        data = yield from read(offset, GUEST_HEAD, "The first grain")
        notes.guest_head(offset, data)
        return
    data = yield from read(offset, _GRAIN_HEAD + GUEST_HEAD * 2, "The first grain")
    if header.flags & _MARKED:
        data = data[_GRAIN_HEAD:]
    try:
        notes.guest_head(None, zlib.decompressobj().decompress(data, GUEST_HEAD))
    except zlib.error:
        notes.unsafe("corrupt", "The first grain is not compressed as it should be", offset)


def _walk(notes: Notes, header: Any) -> Steps[_Walk]:
    """Go from grain to grain to the first grain table, which a stream has behind its grains.

    Each grain has its first sector and its length in front, each table a marker.
    """
    first = None
    offset = header.overhead * _SECTOR
    for _ in range(_MAX_GRAINS):
        data = yield from read(offset, _MARKER.sizeof(), "The grains of the stream")
        if len(data) < _MARKER.sizeof():
            break
        marker = parse(_MARKER, data, "A marker of the stream", offset)
        if marker.size:
            if marker.sectors == 0 and first is None:
                first = offset // _SECTOR
                notes.start(_grain(notes, header, offset))
            offset = align_up(offset + _GRAIN_HEAD + marker.size, _SECTOR)
        elif marker.type == _TABLE_MARKER:
            offset += _SECTOR
            entry = yield from read(offset, 4, "The first grain table")
            return _Walk(first, offset // _SECTOR, int.from_bytes(entry, "little"))
        else:
            break
    return _Walk(first, None, 0)


def _judge_walk(notes: Notes, walk: _Walk, directory: int) -> Steps[None]:
    """What the footer's grain directory leads to must be what was met first in the stream.

    Else a guest would see first what nobody looked at.
    """
    data = yield from read(directory * _SECTOR, 4, "The grain directory")
    table = int.from_bytes(data, "little")
    if table and table != walk.table:
        notes.unsafe("vmdk-order", "Its grain directory begins with another table than the stream")
    elif table and walk.entry > 1 and walk.entry != walk.first:
        notes.unsafe(
            "vmdk-order", "Its first grain table begins with another grain than the stream"
        )


def _describe(notes: Notes, data: bytes, offset: int, *, alone: bool) -> None:
    """Judge a description; ``alone``: the files that it names are the disk."""
    text = _text(data)
    settings: dict[str, str] = {}
    sectors = extents = 0
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        extent = _EXTENT.fullmatch(line)
        if extent is not None:
            extents += 1
            sectors += int(extent["sectors"][:18])
            _judge_extent(notes, extent, offset, alone=alone)
            continue
        key, equals, value = line.partition("=")
        if equals and _KEY.fullmatch(key.rstrip()):
            settings.setdefault(key.rstrip().lower(), value.strip().strip('"'))
        else:
            notes.unsafe("vmdk-description", "Its description has lines that mean nothing", offset)
    kind = settings.get("createtype", "")
    if kind:
        notes.variant = kind if kind.isprintable() and len(kind) < 64 else "unknown"
    if alone:
        notes.virtual_size = sectors * _SECTOR if sectors < 1 << 54 else None
    if alone or kind.lower() not in _WHOLE:
        notes.unsafe("vmdk-kind", "It is not an image that is whole in one file", offset)
    if not extents:
        notes.unsafe("vmdk-description", "Its description names no extents", offset)
    _name_parents(notes, text, offset)
    parent = settings.get("parentcid", _NO_PARENT)
    if parent.lower() != _NO_PARENT:
        notes.parent(parent[:64], offset)


def _text(data: bytes) -> str:
    """A description ends with its first NUL."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name_parents(notes: Notes, text: str, offset: int) -> None:
    for hint in _HINT.finditer(text):
        notes.file("parent", hint[1], offset=offset)


def _judge_extent(notes: Notes, extent: re.Match[str], offset: int, *, alone: bool) -> None:
    name = extent["name"]
    if name is None:
        if extent["type"].lower() != "zero":
            notes.unsafe("vmdk-description", "An extent has no name", offset)
    elif alone:
        notes.file("extent", name, offset=offset)
    elif extent["type"].lower() != "sparse" or "/" in name or "\\" in name:
        # A sparse file's description names the file itself, however that is called by now.
        notes.file("extent", name, offset=offset)
