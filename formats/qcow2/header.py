"""The qcow2 header and its extensions: parsed and judged, changed and built.

Every limit that SAFETY demands of a header is enforced here, before anything is allocated or read
on its word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

from imgtool.errors import BadOption, CorruptImage, ImageError, UnsupportedFeature, WrongFormat
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.geometry import (
    MAX_CLUSTER_BITS,
    MAX_HOST_OFFSET,
    MAX_L1_BYTES,
    MAX_REFCOUNT_ORDER,
    MAX_REFCOUNT_TABLE_BYTES,
    MIN_CLUSTER_BITS,
    Geometry,
)
from imgtool.formats.qcow2.schema import (
    Autoclear,
    Compatible,
    Compression,
    Crypt,
    ExtensionType,
    Incompatible,
)
from imgtool.schema.fields import build, parse
from imgtool.storage.base import Storage
from imgtool.units import align_up

MAX_BACKING_NAME = 1023
MAX_SNAPSHOTS = 65536
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY = MAX_BITMAPS * 1024

#: How much of a file is read at first: the whole header, but where extensions are long; bytes.
_FIRST_READ = 4096

KNOWN_INCOMPATIBLE = (
    Incompatible.DIRTY
    | Incompatible.CORRUPT
    | Incompatible.EXTERNAL_DATA_FILE
    | Incompatible.COMPRESSION_TYPE
    | Incompatible.EXTENDED_L2
)

_EXTENSION_HEAD: int = schema.EXTENSION_HEAD.sizeof()

_NO_INCOMPATIBLE, _NO_COMPATIBLE, _NO_AUTOCLEAR = Incompatible(0), Compatible(0), Autoclear(0)

#: The names that a feature name table gives, by type (0 incompatible, 1 compatible, 2 autoclear)
#: and bit. The names are those of the specification.
FEATURE_NAMES: dict[tuple[int, int], str] = {
    (0, 0): "dirty bit",
    (0, 1): "corrupt bit",
    (0, 2): "external data file",
    (0, 3): "compression type",
    (0, 4): "extended L2 entries",
    (1, 0): "lazy refcounts",
    (2, 0): "bitmaps",
    (2, 1): "raw external data",
}


#: The extensions that mean something only once; feature name tables add to each other.
_UNIQUE = frozenset(ExtensionType) - {ExtensionType.END, ExtensionType.FEATURE_NAMES}


class Extension(NamedTuple):
    """A header extension as it stands: its type and its data without padding."""

    type: int
    data: bytes


class BitmapsExtension(NamedTuple):
    """Where the bitmap directory lies and how large it is (bytes)."""

    number: int
    directory_size: int
    directory_offset: int


class Header(NamedTuple):
    """A qcow2 header that has passed every check which needs nothing but the header.

    ``extensions`` holds all of them in order, unknown ones included, so that what is built from a
    header has everything that was parsed.
    """

    version: int
    geometry: Geometry
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    crypt_method: Crypt = Crypt.NONE
    snapshot_count: int = 0
    snapshots_offset: int = 0
    incompatible: Incompatible = _NO_INCOMPATIBLE
    compatible: Compatible = _NO_COMPATIBLE
    autoclear: Autoclear = _NO_AUTOCLEAR
    compression: Compression = Compression.ZLIB
    header_length: int = schema.HEADER_LENGTH
    backing_file: str | None = None
    extensions: tuple[Extension, ...] = ()
    #: What a header of more than 104 bytes holds behind the compression type, padding included.
    unknown_fields: bytes = b""

    def extension(self, wanted: ExtensionType) -> bytes | None:
        """The data of the first extension of a type, or None."""
        for extension in self.extensions:
            if extension.type == wanted:
                return extension.data
        return None

    @property
    def backing_format(self) -> str | None:
        """The recorded format of the backing file; an empty name records none."""
        data = self.extension(ExtensionType.BACKING_FORMAT)
        return None if data is None else _text(data) or None

    @property
    def data_file(self) -> str | None:
        data = self.extension(ExtensionType.DATA_FILE)
        return None if data is None else _text(data)

    @property
    def has_data_file(self) -> bool:
        return bool(self.incompatible & Incompatible.EXTERNAL_DATA_FILE)

    @property
    def data_file_raw(self) -> bool:
        return bool(self.autoclear & Autoclear.RAW_EXTERNAL_DATA)

    @property
    def dirty(self) -> bool:
        return bool(self.incompatible & Incompatible.DIRTY)

    @property
    def corrupt(self) -> bool:
        return bool(self.incompatible & Incompatible.CORRUPT)

    @property
    def bitmaps(self) -> BitmapsExtension | None:
        """The bitmaps extension, if the autoclear bit says that it is to be believed."""
        data = self.extension(ExtensionType.BITMAPS)
        if data is None or not self.autoclear & Autoclear.BITMAPS:
            return None
        if len(data) != schema.BITMAPS_EXTENSION.sizeof():
            raise CorruptImage("The bitmaps extension has a wrong length")
        fields = parse(schema.BITMAPS_EXTENSION, data, "The bitmaps extension")
        if not 0 < fields.nb_bitmaps <= MAX_BITMAPS:
            raise CorruptImage(f"The bitmaps extension counts {fields.nb_bitmaps} bitmaps")
        if not 0 < fields.directory_size <= MAX_BITMAP_DIRECTORY:
            raise CorruptImage("The bitmap directory is too large")
        if fields.directory_offset % self.geometry.cluster_size:
            raise CorruptImage("The bitmap directory is not aligned", fields.directory_offset)
        return BitmapsExtension(fields.nb_bitmaps, fields.directory_size, fields.directory_offset)

    @property
    def luks_header(self) -> tuple[int, int] | None:
        """Offset and length of the LUKS header (Full disk encryption header pointer)."""
        data = self.extension(ExtensionType.CRYPTO)
        if data is None:
            return None
        fields = parse(schema.CRYPTO_POINTER, data, "The encryption header pointer")
        return fields.offset, fields.length

    def with_extension(self, wanted: ExtensionType, data: bytes | None) -> Header:
        """Return the header with one extension replaced, added, or (None) removed."""
        others = tuple(extension for extension in self.extensions if extension.type != wanted)
        if data is not None:
            others = (*others, Extension(wanted, data))
        return self._replace(extensions=others)

    def with_l1_table_at(self, offset: int) -> Header:
        """Return the header with the active L1 table at another host offset."""
        return self._replace(l1_table_offset=offset)

    def build(self, *, name_offset: int | None = None) -> bytes:
        """Return the header's bytes: fields, extensions and backing file name, unpadded.

        The name follows the extensions unless it lies at ``name_offset``; then it is left out.
        Raises :class:`ImageError` if they do not fit into one cluster.
        """
        body = bytearray()
        for extension in self.extensions:
            body += build(
                schema.EXTENSION_HEAD, {"type": extension.type, "length": len(extension.data)}
            )
            body += extension.data.ljust(align_up(len(extension.data), 8), b"\0")
        body += build(schema.EXTENSION_HEAD, {"type": ExtensionType.END, "length": 0})
        name = os_bytes(self.backing_file) if self.backing_file is not None else b""
        apart = name_offset is not None
        if name_offset is None:
            name_offset = self.header_length + len(body)
        fields = build(
            schema.HEADER_V2,
            {
                "version": self.version,
                "backing_file_offset": name_offset if name else 0,
                "backing_file_size": len(name),
                "cluster_bits": self.geometry.cluster_bits,
                "size": self.size,
                "crypt_method": self.crypt_method,
                "l1_size": self.l1_size,
                "l1_table_offset": self.l1_table_offset,
                "refcount_table_offset": self.refcount_table_offset,
                "refcount_table_clusters": self.refcount_table_clusters,
                "nb_snapshots": self.snapshot_count,
                "snapshots_offset": self.snapshots_offset,
            },
        )
        if self.version >= 3:
            fields += build(
                schema.HEADER_V3,
                {
                    "incompatible_features": self.incompatible,
                    "compatible_features": self.compatible,
                    "autoclear_features": self.autoclear,
                    "refcount_order": self.geometry.refcount_order,
                    "header_length": self.header_length,
                },
            )
            if self.header_length > schema.HEADER_V3_LENGTH:
                fields += build(schema.HEADER_ADDITIONAL, {"compression_type": self.compression})
                fields = (fields + self.unknown_fields).ljust(self.header_length, b"\0")
        whole = fields + bytes(body) + (b"" if apart else name)
        if len(whole) > self.geometry.cluster_size:
            if self.extension(ExtensionType.FEATURE_NAMES) is not None:
                # The names are a courtesy, and make room for what is needed.
                return self.with_extension(ExtensionType.FEATURE_NAMES, None).build()
            raise ImageError(
                f"The header needs {len(whole)} bytes and a cluster has only "
                f"{self.geometry.cluster_size}: use a larger cluster_size or a shorter backing "
                "file name"
            )
        return whole


@functools.cache
def feature_name_table() -> bytes:
    """The data of a feature name table extension that names every feature we know."""
    return b"".join(
        build(
            schema.FEATURE_NAME, {"type": kind, "bit": bit, "name": name.encode().ljust(46, b"\0")}
        )
        for (kind, bit), name in sorted(FEATURE_NAMES.items())
    )


def feature_names(extensions: Iterable[Extension]) -> dict[tuple[int, int], str]:
    """What the image itself calls features, by type and bit as :data:`FEATURE_NAMES` is."""
    size = schema.FEATURE_NAME.sizeof()
    names: dict[tuple[int, int], str] = {}
    for extension in extensions:
        if extension.type == ExtensionType.FEATURE_NAMES:
            for start in range(0, len(extension.data) - size + 1, size):
                data = extension.data[start : start + size]
                entry = parse(schema.FEATURE_NAME, data, "The feature name table")
                name = entry.name.split(b"\0", 1)[0].decode("utf-8", "replace")
                names[entry.type, entry.bit] = name
    return names


def os_bytes(name: str) -> bytes:
    """The names of files, snapshots and bitmaps as bytes, undecodable ones unchanged.

    Raises :class:`BadOption` for what stands for no bytes.
    """
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadOption(f"{name!a} has a character that no name can have") from None


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def read_header(storage: Storage, *, for_repair: bool = False) -> Header:
    """Read and check the header of the image in ``storage``.

    ``for_repair`` takes a refcount table that cannot be for none at all. Raises
    :class:`WrongFormat`, :class:`CorruptImage` or :class:`UnsupportedFeature`.
    """
    try:
        return _read_header(storage, for_repair)
    except ImageError as error:
        raise error.in_file(storage.name) from error.__cause__


class _Start:
    """The first cluster of an image: as much of it as most headers take, or else all of it.

    ``size`` is that of the file, ``cluster_size`` is set as soon as it is known. All are bytes.
    """

    def __init__(self, storage: Storage) -> None:
        self.size = storage.size()
        self.cluster_size = _FIRST_READ
        self._storage = storage
        self._data = storage.read_at(0, _FIRST_READ)

    def get(self, offset: int, length: int) -> bytes:
        """Return bytes from ``offset``; what lies past the end of the file is zero."""
        end = offset + length
        if end > len(self._data):
            self._storage.account.check(2 * self.cluster_size, "The header's cluster")
            self._data = self._storage.read_at(0, self.cluster_size)
        return self._data[offset:end]

    def get_exact(self, offset: int, length: int, what: str) -> bytes:
        """Return bytes that must all exist; ``what`` names the structure they hold."""
        if offset + length > self.size:
            raise CorruptImage(f"{what} lies past the end of the file", offset)
        return self.get(offset, length)


def _read_header(storage: Storage, for_repair: bool) -> Header:
    start = _Start(storage)
    if start.get(0, 4) != schema.MAGIC:
        raise WrongFormat("Image is not in qcow2 format")
    if start.size < schema.HEADER_V2_LENGTH:
        raise CorruptImage(
            f"qcow2 header too short: the file has {start.size} bytes, so it was cut off"
        )
    fields = parse(schema.HEADER_V2, start.get(0, schema.HEADER_V2_LENGTH), "The header")
    if fields.version not in (2, 3):
        raise UnsupportedFeature([f"qcow2 version {fields.version}"])
    if not MIN_CLUSTER_BITS <= fields.cluster_bits <= MAX_CLUSTER_BITS:
        raise CorruptImage(f"Unsupported cluster size: 2^{fields.cluster_bits}")
    start.cluster_size = cluster_size = 1 << fields.cluster_bits

    incompatible, compatible, autoclear = _NO_INCOMPATIBLE, _NO_COMPATIBLE, _NO_AUTOCLEAR
    refcount_order, header_length, compression = 4, schema.HEADER_V2_LENGTH, 0
    unknown_fields = b""
    if fields.version >= 3:
        length = schema.HEADER_V3_LENGTH - schema.HEADER_V2_LENGTH
        data = start.get_exact(schema.HEADER_V2_LENGTH, length, "The version 3 header")
        v3 = parse(schema.HEADER_V3, data, "The version 3 header")
        incompatible, compatible = v3.incompatible_features, v3.compatible_features
        autoclear, refcount_order = v3.autoclear_features, v3.refcount_order
        header_length = v3.header_length
        if header_length < schema.HEADER_V3_LENGTH:
            raise CorruptImage(f"The header length {header_length} is too short")
        if header_length > cluster_size:
            raise CorruptImage(f"The header length {header_length} exceeds the cluster size")
        if header_length > schema.HEADER_V3_LENGTH:
            length = header_length - schema.HEADER_V3_LENGTH
            data = start.get_exact(schema.HEADER_V3_LENGTH, length, "The additional header fields")
            additional = parse(schema.HEADER_ADDITIONAL, data, "The additional header fields")
            compression = additional.compression_type
            unknown_fields = data[schema.HEADER_ADDITIONAL.sizeof() :]

    name_offset = fields.backing_file_offset
    backing_file = _read_name(start, name_offset, fields.backing_file_size, cluster_size)
    extensions = _read_extensions(start, header_length, name_offset or cluster_size)
    _check_features(storage, incompatible, extensions)
    if compression not in tuple(Compression):
        raise UnsupportedFeature([f"compression type {compression}"])
    if bool(compression) != bool(incompatible & Incompatible.COMPRESSION_TYPE):
        raise CorruptImage("The compression type contradicts its incompatible feature bit")
    if autoclear & Autoclear.RAW_EXTERNAL_DATA and not (
        incompatible & Incompatible.EXTERNAL_DATA_FILE
    ):
        # Zeros would go to guest offsets in a file that is kept raw, which this one is not.
        raise CorruptImage("The external data file is said to be raw, and there is none")
    if incompatible & Incompatible.EXTENDED_L2 and fields.cluster_bits < 14:
        raise CorruptImage("Extended L2 entries need a cluster size of at least 16 KiB")
    if fields.crypt_method not in tuple(Crypt):
        raise UnsupportedFeature([f"encryption method {fields.crypt_method}"])
    if refcount_order > MAX_REFCOUNT_ORDER:
        raise CorruptImage(f"The refcount width of 2^{refcount_order} bits exceeds 64")

    geometry = Geometry(
        fields.cluster_bits, refcount_order, bool(incompatible & Incompatible.EXTENDED_L2)
    )
    header = Header(
        version=fields.version,
        geometry=geometry,
        size=fields.size,
        l1_size=fields.l1_size,
        l1_table_offset=fields.l1_table_offset,
        refcount_table_offset=fields.refcount_table_offset,
        refcount_table_clusters=fields.refcount_table_clusters,
        crypt_method=Crypt(fields.crypt_method),
        snapshot_count=fields.nb_snapshots,
        snapshots_offset=fields.snapshots_offset,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        compression=Compression(compression),
        header_length=header_length,
        backing_file=backing_file,
        extensions=extensions,
        unknown_fields=unknown_fields,
    )
    try:
        _check_refcount_table(header)
    except CorruptImage:
        if not for_repair:
            raise
        header = header._replace(refcount_table_offset=0, refcount_table_clusters=0)
    _check_tables(header)
    return header


def _read_name(start: _Start, offset: int, size: int, cluster_size: int) -> str | None:
    """The backing file name, which lies in the first cluster, behind the header extensions."""
    if offset > cluster_size:
        raise CorruptImage("The backing file name lies outside the first cluster", offset)
    if not offset:
        return None
    if size > min(MAX_BACKING_NAME, cluster_size - offset):
        raise CorruptImage(f"The backing file name of {size} bytes is too long")
    # A name of no length stands for no backing file.
    name = start.get_exact(offset, size, "The backing file name")
    return name.decode("utf-8", "surrogateescape") or None


def _read_extensions(start: _Start, offset: int, end: int) -> tuple[Extension, ...]:
    """The header extensions, which run from the header's end to the backing file name.

    One that comes twice, and names two files or formats, is not an image that two readers would
    read alike: QEMU goes by the last.
    """
    extensions: list[Extension] = []
    while offset + _EXTENSION_HEAD <= end:
        what = "A header extension"
        head = parse(schema.EXTENSION_HEAD, start.get(offset, _EXTENSION_HEAD), what, offset)
        offset += _EXTENSION_HEAD
        if head.length > end - offset:
            raise CorruptImage(f"{what} is longer than its space", offset - _EXTENSION_HEAD)
        if head.type == ExtensionType.END:
            break
        if head.type in _UNIQUE and any(other.type == head.type for other in extensions):
            raise CorruptImage(f"{what} comes twice", offset - _EXTENSION_HEAD)
        extensions.append(Extension(head.type, start.get(offset, head.length)))
        offset += align_up(head.length, 8)
    return tuple(extensions)


def _check_features(
    storage: Storage, incompatible: Incompatible, extensions: tuple[Extension, ...]
) -> None:
    unknown = int(incompatible) & ~int(KNOWN_INCOMPATIBLE)
    if not unknown:
        return
    for extension in extensions:
        if extension.type == ExtensionType.FEATURE_NAMES:
            # Each name becomes a string and a place in a dictionary.
            storage.account.check(4 * len(extension.data), "The feature name table")
    names = feature_names(extensions)
    bits = [bit for bit in range(64) if unknown >> bit & 1]
    raise UnsupportedFeature(
        names.get((0, bit)) or f"Unknown incompatible feature: {1 << bit:x}" for bit in bits
    )


def _check_refcount_table(header: Header) -> None:
    cluster_size = header.geometry.cluster_size
    _check_table("The refcount table", header.refcount_table_offset, cluster_size)
    if header.refcount_table_clusters * cluster_size > MAX_REFCOUNT_TABLE_BYTES:
        raise CorruptImage("The refcount table is too large", header.refcount_table_offset)
    if header.refcount_table_clusters == 0:
        raise CorruptImage("The image has no refcount table")


def _check_tables(header: Header) -> None:
    geometry = header.geometry
    cluster_size = geometry.cluster_size
    if header.snapshot_count > MAX_SNAPSHOTS:
        raise CorruptImage(f"The image counts {header.snapshot_count} snapshots, too many")
    # QEMU refuses the places of tables without entries as well.
    _check_table("The snapshot table", header.snapshots_offset, cluster_size)
    if header.size > (1 << 63) - 1:
        raise CorruptImage(f"The disk size {header.size} is too large")
    if header.l1_size * 8 > MAX_L1_BYTES:
        raise CorruptImage("The active L1 table is too large", header.l1_table_offset)
    if header.l1_size < geometry.l1_entries(header.size):
        raise CorruptImage("The L1 table is too small for the disk", header.l1_table_offset)
    _check_table("The active L1 table", header.l1_table_offset, cluster_size)
    if header.luks_header is not None and header.luks_header[0] % cluster_size:
        raise CorruptImage("The LUKS header is not aligned", header.luks_header[0])


def _check_table(what: str, offset: int, cluster_size: int) -> None:
    if offset % cluster_size:
        raise CorruptImage(f"{what} is not aligned to a cluster", offset)
    if offset >= MAX_HOST_OFFSET:
        raise CorruptImage(f"{what} lies too far out", offset)
