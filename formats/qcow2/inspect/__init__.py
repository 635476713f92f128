"""Inspecting a qcow2 image: its header, what it names, its tables, and what a guest sees first."""

from __future__ import annotations

from typing import Any

from imgtool.errors import ImageError, UnsupportedFeature
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.geometry import MAX_CLUSTER_BITS, MIN_CLUSTER_BITS
from imgtool.formats.qcow2.header import (
    FEATURE_NAMES,
    KNOWN_INCOMPATIBLE,
    Header,
    feature_names,
    read_header,
)
from imgtool.formats.qcow2.inspect.guest import guest_head
from imgtool.formats.qcow2.inspect.layout import Layout
from imgtool.formats.qcow2.inspect.lists import bitmaps, snapshots
from imgtool.formats.qcow2.inspect.tables import scan_l1, scan_refcount_table
from imgtool.formats.qcow2.schema import Compression, Crypt, Incompatible
from imgtool.inspection import Notes, Steps, read, read_exact
from imgtool.schema.fields import parse
from imgtool.storage.memory import MemoryStorage
from imgtool.units import MAX_SIZE

#: What is shown of a name that breaks the limits itself.
_MAX_NAME = 2048
_INCOMPATIBLE = slice(schema.HEADER_V2_LENGTH, schema.HEADER_V2_LENGTH + 8)


def inspect(notes: Notes) -> Steps[None]:
    """Judge an image by its first cluster, and start what looks at the tables it points to."""
    start = yield from read(0, schema.HEADER_LENGTH, "The header")
    fields = parse(schema.HEADER_V2, start, "The header")
    notes.variant = f"version {fields.version}"
    if fields.size <= MAX_SIZE:
        notes.virtual_size = fields.size
    bits = fields.cluster_bits
    cluster = 1 << (bits if MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS else MIN_CLUSTER_BITS)
    first = yield from read(0, cluster, "The first cluster")
    try:
        header = _header(notes, first)
    except ImageError:
        # Whatever else is wrong does not hide what it names.
        _name_files_all_the_same(notes, fields, first)
        raise
    _name_files(notes, header, fields.backing_file_offset)
    _name_features(notes, header)
    layout = Layout(header)
    if header.crypt_method is Crypt.LUKS:
        notes.start(_luks(notes, header))
    notes.start(scan_refcount_table(notes, header, layout))
    notes.start(scan_l1(notes, header, layout))
    if header.snapshot_count:
        notes.start(snapshots(notes, header, layout))
    notes.start(bitmaps(notes, header, layout))
    notes.start(guest_head(notes, header))
    # Started last, so that all the others have entered their tables when it is its turn.
    notes.start(layout.judge(notes))


def _header(notes: Notes, first: bytes) -> Header:
    """The header as the driver judges it; unknown features are noted and looked past."""
    with MemoryStorage(first, "<header>", read_only=True) as storage:
        try:
            return read_header(storage)
        except UnsupportedFeature as error:
            known = int.from_bytes(first[_INCOMPATIBLE], "big") & int(KNOWN_INCOMPATIBLE)
            cleared = first[: _INCOMPATIBLE.start] + known.to_bytes(8, "big")
            cleared += first[_INCOMPATIBLE.stop :]
            if cleared == first:
                raise
            for name in error.names:
                notes.unsafe(
                    "unknown-feature",
                    f"It needs the unknown feature: {name}",
                    schema.HEADER_V2_LENGTH,
                )
    with MemoryStorage(cleared, "<header>", read_only=True) as storage:
        return read_header(storage)


def _name_files(notes: Notes, header: Header, place: int) -> None:
    if header.backing_file is not None:
        notes.file("backing-file", header.backing_file, format=header.backing_format, offset=place)
        if header.backing_format is None:
            # Whoever opens it guesses, and whoever wrote the backing file chose what is guessed.
            notes.unsafe("backing-format", "The format of its backing file is not recorded", place)
    if header.has_data_file and header.data_file is None:
        notes.unsafe("data-file", "Its data is in an external file", schema.HEADER_V2_LENGTH)
    elif header.has_data_file and header.data_file is not None:
        notes.file("data-file", header.data_file, format="raw", offset=schema.HEADER_V2_LENGTH)


def _name_files_all_the_same(notes: Notes, fields: Any, first: bytes) -> None:
    place = fields.backing_file_offset
    name = first[place : place + fields.backing_file_size][:_MAX_NAME]
    if place and name:
        notes.file("backing-file", name.decode("utf-8", "surrogateescape"), offset=place)
    incompatible = int.from_bytes(first[_INCOMPATIBLE], "big")
    if fields.version >= 3 and incompatible & Incompatible.EXTERNAL_DATA_FILE:
        notes.unsafe("data-file", "Its data is in an external file", schema.HEADER_V2_LENGTH)


def _name_features(notes: Notes, header: Header) -> None:
    own_names = feature_names(header.extensions)
    sets = (header.incompatible, header.compatible, header.autoclear)
    for kind, flags in enumerate(sets):
        for bit in range(64):
            if not int(flags) >> bit & 1:
                continue
            name = FEATURE_NAMES.get((kind, bit))
            if name is not None:
                notes.feature(name)
            elif kind:
                which = ("", "compatible", "autoclear")[kind]
                name = own_names.get((kind, bit)) or f"{which} feature bit {bit}"
                notes.feature(name)
                notes.note("unknown-compatible", f"It has the unknown feature: {name}")
    if header.compression is not Compression.ZLIB:
        notes.feature(f"{header.compression.name.lower()} compression")
    if header.corrupt:
        notes.unsafe("marked-corrupt", "It is marked as corrupt", schema.HEADER_V2_LENGTH)
    if header.dirty:
        notes.warn("dirty", "It was not closed properly", schema.HEADER_V2_LENGTH)
    if header.crypt_method is Crypt.AES:
        notes.encryption = "aes"
        notes.warn("weak-encryption", "It has the old AES encryption, which is weak")
    known = tuple(schema.ExtensionType)
    for extension in header.extensions:
        if extension.type not in known:
            notes.note("unknown-extension", f"It has the unknown extension {extension.type:#x}")


def _luks(notes: Notes, header: Header) -> Steps[None]:
    from imgtool.crypto.luks_inspect import inspect_header
    from imgtool.schema import luks

    notes.encryption = "luks"
    place = header.luks_header
    if place is None:
        notes.unsafe("luks-missing", "It is encrypted and says nowhere where its LUKS header is")
        return
    data = yield from read_exact(place[0], luks.HEADER.sizeof(), "The LUKS header")
    volume = inspect_header(notes, data)
    if volume.payload_offset > place[1]:
        notes.unsafe("luks-payload", "The LUKS header is longer than its place", place[0])
