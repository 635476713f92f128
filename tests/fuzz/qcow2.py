"""What fuzzing has to know of qcow2: seed images, and where their structures lie."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from construct import Array, Bytes, Construct, Int8ub, Int16ub, Int32ub, Int64ub, Struct

import imgtool
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.schema import ExtensionType
from imgtool.formats.qcow2.snapshots import read_snapshots
from imgtool.formats.qcow2.tables import read_table
from imgtool.schema import luks
from imgtool.schema.fields import Table
from imgtool.storage.memory import MemoryStorage
from tests.fuzz.luks import PASSWORD, cheap_keys
from tests.kit import qcow2, referee
from tests.kit.fuzz.layout import Structure
from tests.kit.fuzz.subject import Subject
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.tools import find_tool

_WIDTHS = {3: Int8ub, 4: Int16ub, 5: Int32ub, 6: Int64ub}

_EXTENSIONS: dict[int, Construct] = {
    ExtensionType.FEATURE_NAMES: schema.FEATURE_NAME[8],
    ExtensionType.CRYPTO: schema.CRYPTO_POINTER,
    ExtensionType.BITMAPS: schema.BITMAPS_EXTENSION,
}


def structures(image: bytes) -> Iterator[Structure]:
    """Follow a sound image, or one that is damaged as far as it can be followed."""
    yield Structure("header", 0, schema.HEADER_V2)
    header = read_header(MemoryStorage(image))
    yield from _in_header(image, header)
    yield from _tables(image, header, "", header.l1_table_offset, header.l1_size)
    yield from _snapshots(image, header)
    yield from _refcounts(image, header)
    yield from _bitmaps(image, header)
    if header.luks_header is not None:
        yield Structure("luks", header.luks_header[0], luks.HEADER)


def _in_header(image: bytes, header: Header) -> Iterator[Structure]:
    if header.version >= 3:
        yield Structure("header", schema.HEADER_V2_LENGTH, schema.HEADER_V3)
        if header.header_length > schema.HEADER_V3_LENGTH:
            rest = header.header_length - schema.HEADER_V3_LENGTH - 1
            additional = Struct("compression_type" / Int8ub, "unknown" / Bytes(rest))
            yield Structure("header", schema.HEADER_V3_LENGTH, additional)
    offset = header.header_length
    for number, extension in enumerate(header.extensions):
        yield Structure(f"extension-{number}", offset, schema.EXTENSION_HEAD)
        body = _EXTENSIONS.get(extension.type, Bytes(len(extension.data)))
        yield Structure(f"extension-{number}.data", offset + 8, body)
        offset += 8 + -(-len(extension.data) // 8) * 8
    yield Structure("extension-end", offset, schema.EXTENSION_HEAD)
    fields = schema.HEADER_V2.parse(image)
    if fields.backing_file_offset:
        name = Bytes(fields.backing_file_size)
        yield Structure("backing-name", fields.backing_file_offset, name)


def _tables(
    image: bytes, header: Header, prefix: str, offset: int, entries: int
) -> Iterator[Structure]:
    """An L1 table, its L2 tables, and what of their clusters is encoded."""
    yield Structure(f"{prefix}l1", offset, Table(entries))
    storage, geometry = MemoryStorage(image), header.geometry
    compressed = 0
    for number, value in enumerate(read_table(storage, offset, entries, "L1")):
        where = value & schema.L1_OFFSET_MASK
        if not where:
            continue
        count = geometry.cluster_size // 8
        yield Structure(f"{prefix}l2-{number}", where, Table(count))
        for entry in read_table(storage, where, count, "L2")[:: geometry.l2_entry_size // 8]:
            if entry & schema.COMPRESSED and compressed < 8:
                start, length = geometry.compressed_range(entry)
                yield Structure(f"{prefix}compressed-{compressed}", start, Bytes(length))
                compressed += 1


def _snapshots(image: bytes, header: Header) -> Iterator[Structure]:
    offset = header.snapshots_offset
    for number, found in enumerate(read_snapshots(MemoryStorage(image), header)):
        yield Structure(f"snapshot-{number}", offset, schema.SNAPSHOT_HEAD)
        known = [name / part for name, part in schema.SNAPSHOT_EXTRA][: len(found.extra_data) // 8]
        names = Struct("id" / Bytes(len(found.raw_id)), "name" / Bytes(len(found.raw_name)))
        place = offset + schema.SNAPSHOT_HEAD.sizeof()
        yield Structure(f"snapshot-{number}.extra", place, Struct(*known))
        yield Structure(f"snapshot-{number}", place + len(found.extra_data), names)
        yield from _tables(
            image, header, f"snapshot-{number}.", found.l1_table_offset, found.l1_size
        )
        offset += found.size_on_disk


def _refcounts(image: bytes, header: Header) -> Iterator[Structure]:
    geometry: Geometry = header.geometry
    count = header.refcount_table_clusters * geometry.cluster_size // 8
    yield Structure("refcount-table", header.refcount_table_offset, Table(count))
    width = _WIDTHS.get(geometry.refcount_order)
    block = (
        Bytes(geometry.cluster_size)
        if width is None
        else Array(geometry.refcount_block_entries, width)
    )
    table = read_table(MemoryStorage(image), header.refcount_table_offset, count, "refcounts")
    for number, offset in enumerate(table):
        if offset:
            yield Structure(f"refcount-block-{number}", offset, block)


def _bitmaps(image: bytes, header: Header) -> Iterator[Structure]:
    extension = header.bitmaps
    if extension is None:
        return
    offset = extension.directory_offset
    for number in range(extension.number):
        head = schema.BITMAP_HEAD.parse(image[offset:])
        yield Structure(f"bitmap-{number}", offset, schema.BITMAP_HEAD)
        names = Struct("extra" / Bytes(head.extra_data_size), "name" / Bytes(head.name_size))
        yield Structure(f"bitmap-{number}", offset + schema.BITMAP_HEAD.sizeof(), names)
        if head.bitmap_table_offset:
            table = Table(head.bitmap_table_size)
            yield Structure(f"bitmap-{number}.table", head.bitmap_table_offset, table)
        length = schema.BITMAP_HEAD.sizeof() + head.extra_data_size + head.name_size
        offset += -(-length // 8) * 8


def _builder(**options: Any) -> ImageBuilder:
    builder = ImageBuilder(20 << options.get("cluster_bits", 9), **{"cluster_bits": 9, **options})
    for index in (3, 0, 1, 7):
        builder.data(index)
    return builder


def _names() -> ImageBuilder:
    """A backing file, its format, and a feature name table."""
    names = b"".join(
        struct.pack(">BB46s", kind, bit, name)
        for kind, bit, name in (
            (0, 0, b"dirty bit"), (0, 1, b"corrupt bit"), (0, 2, b"external data file"),
            (0, 3, b"compression type"), (0, 4, b"extended L2 entries"), (1, 0, b"lazy refcounts"),
            (2, 0, b"bitmaps"), (2, 1, b"raw external data"),
        )
    )  # fmt: skip
    return _builder(
        cluster_bits=12,
        backing=b"base.img",
        backing_format=b"raw",
        extensions=[(qcow2.FEATURE_NAMES, names)],
    )


def _bitmapped() -> ImageBuilder:
    """Two bitmaps: one with bits, and one that is all ones."""
    builder = _builder(cluster_bits=9, header={"autoclear_features": qcow2.BITMAPS})
    bits = builder.place(bytes((0b10010110,)) * 512, "bits")
    tables = builder.place(struct.pack(">Q", bits).ljust(512, b"\0") + bytes(7) + b"\1", "tables")
    directory = b""
    for name, where, entries in ((b"first", tables, 1), (b"second-one", tables + 512, 1)):
        entry = struct.pack(">QIIBBHI", where, entries, 2, 1, 9, len(name), 0) + name
        directory += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
    where = builder.place(directory, "directory")
    extension = struct.pack(">IIQQ", 2, 0, len(directory), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, extension)]
    return builder


def _large() -> ImageBuilder:
    """Clusters of 2 MiB, nearly all of them zeros."""
    builder = ImageBuilder(64 << 21, cluster_bits=21, refcount_order=6)
    builder.zero(1)
    builder.compressed(2, b"large" * 419430 + b"zz")
    return builder


def _external() -> ImageBuilder:
    return _builder(external=True, extensions=[(qcow2.DATA_FILE, b"data.raw")])


def _encrypted() -> bytes:
    with tempfile.TemporaryDirectory(prefix="imgtool-fuzz-") as folder:
        path = Path(folder, "disk.qcow2")
        imgtool.create(
            path, 65536, password=PASSWORD, encrypt_iter_time=1, cluster_size=4096,
            encrypt_cipher_alg="aes-128",
        )  # fmt: skip
        with imgtool.open(path, writable=True, password=PASSWORD) as disk:
            disk.write_at(5000, b"secret" * 1000)
        return path.read_bytes()


def _from_qemu(options: str, *, bitmap: bool) -> bytes:
    """What qemu-img makes of a small disk, with a snapshot and a bitmap."""
    with tempfile.TemporaryDirectory(prefix="imgtool-fuzz-") as folder:
        path = os.path.join(folder, "disk.qcow2")
        referee.must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
        referee.io(path, ["write -P 1 0 9000", "write -z 64k 16k", "write -c -P 7 128k 64k"])
        referee.must("qemu-img", "snapshot", "-c", "one", path)
        referee.io(path, ["write -P 3 4k 20000", "discard 128k 64k"])
        if bitmap:
            referee.must("qemu-img", "bitmap", "--add", "-g", "64k", path, "changes")
        return Path(path).read_bytes()


_BUILDERS: dict[str, Callable[[], ImageBuilder]] = {
    **{name: make for name, make in GALLERY.items() if name != "2M"},
    "names": _names,
    "bitmaps": _bitmapped,
    "large": _large,
    "external": _external,
    "aes": partial(_builder, header={"crypt_method": 1}),
    "dirty": partial(_builder, header={"incompatible_features": qcow2.DIRTY}),
    "lazy": partial(
        _builder,
        header={"incompatible_features": qcow2.DIRTY, "compatible_features": qcow2.LAZY_REFCOUNTS},
    ),
    "corrupt": partial(_builder, header={"incompatible_features": qcow2.CORRUPT}),
}


def _build(make: Callable[[], ImageBuilder]) -> bytes:
    return make().build()


_SEEDS: dict[str, Callable[[], bytes]] = {
    name: partial(_build, make) for name, make in _BUILDERS.items()
}
_SEEDS["encrypted"] = _encrypted
if find_tool("qemu-img") is not None and find_tool("qemu-io") is not None:
    _SEEDS["qemu"] = partial(_from_qemu, "cluster_size=4k", bitmap=True)
    _SEEDS["qemu-old"] = partial(_from_qemu, "compat=0.10,cluster_size=4k", bitmap=False)


def _beyond_repair(image: bytes, found: str) -> bool:
    """Snapshots that have all one disk, and keys that do not lie in the file."""
    keys = read_header(MemoryStorage(image)).luks_header
    lost = keys is not None and f"offset {keys[0]:#x} size {keys[1]:#x}" in found
    return lost or "snapshots in image with data file" in found


QCOW2 = Subject(
    format="qcow2",
    seeds=_SEEDS,
    structures=structures,
    schemas={
        "header": schema.HEADER_V2,
        "header-v3": schema.HEADER_V3,
        "header-additional": schema.HEADER_ADDITIONAL,
        "extension": schema.EXTENSION_HEAD,
        "feature-name": schema.FEATURE_NAME,
        "crypto-pointer": schema.CRYPTO_POINTER,
        "bitmaps-extension": schema.BITMAPS_EXTENSION,
        "snapshot": schema.SNAPSHOT_HEAD,
        "bitmap": schema.BITMAP_HEAD,
        "table": Table(64),
    },
    beyond_repair=_beyond_repair,
    password=PASSWORD,
    during=cheap_keys,
)
