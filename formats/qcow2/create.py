"""Creating qcow2 images. The header is written last: until then the file opens as nothing."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.format import NewImage
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.geometry import MAX_REFCOUNT_TABLE_BYTES, Geometry
from imgtool.formats.qcow2.header import Extension, Header, feature_name_table, os_bytes
from imgtool.formats.qcow2.options import CreateOptions
from imgtool.formats.qcow2.preallocate import preallocate
from imgtool.formats.qcow2.schema import (
    CRYPTO_POINTER,
    HEADER_LENGTH,
    HEADER_V2_LENGTH,
    Autoclear,
    Compatible,
    Compression,
    Crypt,
    ExtensionType,
    Incompatible,
)
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.storage.base import Storage
from imgtool.units import align_up, div_round_up


class NewQcow2(NewImage):
    """A qcow2 image in the making."""

    def __init__(self, device: WritableQcow2, *, reads_zero: bool) -> None:
        self.device: WritableQcow2 = device
        self.reads_zero = reads_zero

    def finish(self) -> None:
        self.device.finish()


def judge(size: int, options: Mapping[str, Any]) -> None:
    """Raise :class:`BadOption` or :class:`ImageError` for an image that cannot be made."""
    chosen = CreateOptions.from_mapping(size, options)
    _header(chosen).build()
    if chosen.encryption is not None:
        from imgtool.crypto.luks_options import new_password

        new_password(options, "encrypt.")


def create(
    storage: Storage,
    size: int,
    options: Mapping[str, Any],
    *,
    data: Storage | None = None,
    backing: BlockDevice | None = None,
) -> NewQcow2:
    """Lay out an empty image; see ``CreateImage``."""
    chosen = CreateOptions.from_mapping(size, options)
    header = _header(chosen)
    geometry = chosen.geometry
    table_clusters = header.refcount_table_clusters
    table = array("Q", bytes(table_clusters * geometry.cluster_size))
    allocator = Allocator(storage, geometry, table, geometry.cluster_size)
    l1_clusters = div_round_up(header.l1_size * 8, geometry.cluster_size)
    # The header is cluster 0; refcount table, first refcount blocks and L1 table follow.
    l1_index = allocator.take_region(1 + table_clusters, l1_clusters, before=1 + table_clusters)
    l1_offset = l1_index << geometry.cluster_bits
    tables_end = l1_offset + align_up(header.l1_size * 8, 512)
    if storage.size():
        # A block device has an old image's header, and old bytes where tables are empty.
        # The header goes first, so that no image is seen with a part of it gone.
        storage.write_zeroes(0, 512)
        storage.flush()
        storage.write_zeroes(0, tables_end)
    header = header.with_l1_table_at(l1_offset)
    contents = data if data is not None else storage
    if chosen.encryption is not None:
        from imgtool.crypto.luks_options import new_password
        from imgtool.formats.qcow2.encryption import new_volume
        from imgtool.storage.encrypted import EncryptedStorage

        luks_index = allocator.take_region(l1_index + l1_clusters, chosen.luks_clusters)
        luks_offset = luks_index << geometry.cluster_bits
        password = new_password(options, "encrypt.")
        header, cipher = new_volume(storage, header, luks_offset, chosen.encryption, password)
        contents = EncryptedStorage(contents, cipher)
    device = WritableQcow2(
        storage,
        header,
        array("Q", bytes(header.l1_size * 8)),
        allocator,
        data=data if data is not None else storage,
        contents=contents,
        backing=backing,
        fresh=True,
    )
    try:
        # Tables end where a sector does; a hole in the file reads as the zeros they hold.
        storage.truncate(max(storage.size(), tables_end))
        if data is not None:
            data.truncate(chosen.size)
        if chosen.preallocates_metadata:
            preallocate(device, chosen)
    except BaseException:
        device.close()
        raise
    # What is mapped and was never written is zeros only if nothing decrypts them.
    noise = chosen.preallocates_metadata and chosen.preallocation not in ("falloc", "full")
    return NewQcow2(device, reads_zero=chosen.encryption is None or not noise)


def _header(options: CreateOptions) -> Header:
    """The header of a new image, but for the place of its L1 table."""
    geometry = options.geometry
    incompatible, autoclear = Incompatible(0), Autoclear(0)
    extensions: list[Extension] = []
    if options.backing_file is not None and options.backing_format is not None:
        extensions.append(Extension(ExtensionType.BACKING_FORMAT, os_bytes(options.backing_format)))
    if options.data_file is not None:
        incompatible |= Incompatible.EXTERNAL_DATA_FILE
        extensions.append(Extension(ExtensionType.DATA_FILE, os_bytes(options.data_file)))
        if options.data_file_raw:
            autoclear |= Autoclear.RAW_EXTERNAL_DATA
    if geometry.extended_l2:
        incompatible |= Incompatible.EXTENDED_L2
    if options.compression is not Compression.ZLIB:
        incompatible |= Incompatible.COMPRESSION_TYPE
    if options.encryption is not None:
        # Its place is known once the tables have theirs.
        extensions.append(Extension(ExtensionType.CRYPTO, bytes(CRYPTO_POINTER.sizeof())))
    if options.version >= 3:
        names = Extension(ExtensionType.FEATURE_NAMES, feature_name_table())
        # In clusters of 512 bytes there is no room for them beside a backing file name.
        if len(names.data) + HEADER_LENGTH + 16 + _room(options) <= geometry.cluster_size:
            extensions.append(names)
    if options.backing_file is not None and len(os_bytes(options.backing_file)) > 1023:
        raise ImageError("The backing file name is longer than 1023 bytes")
    return Header(
        version=options.version,
        geometry=geometry,
        size=options.size,
        l1_size=geometry.l1_entries(options.size),
        l1_table_offset=0,
        refcount_table_offset=geometry.cluster_size,
        refcount_table_clusters=_refcount_table_clusters(options),
        incompatible=incompatible,
        compatible=Compatible.LAZY_REFCOUNTS if options.lazy_refcounts else Compatible(0),
        autoclear=autoclear,
        compression=options.compression,
        crypt_method=Crypt.NONE if options.encryption is None else Crypt.LUKS,
        header_length=HEADER_LENGTH if options.version >= 3 else HEADER_V2_LENGTH,
        backing_file=options.backing_file,
        extensions=tuple(extensions),
    )


def _room(options: CreateOptions) -> int:
    """Bytes in cluster 0 that the other extensions and the backing file name take, at most."""
    names = (options.backing_file, options.backing_format, options.data_file)
    crypto = 0 if options.encryption is None else 8 + CRYPTO_POINTER.sizeof()
    return crypto + sum(len(os_bytes(name)) + 16 for name in names if name)


def _refcount_table_clusters(options: CreateOptions) -> int:
    """A refcount table that still reaches when every guest cluster is allocated."""
    geometry: Geometry = options.geometry
    guest = 0 if options.data_file is not None else geometry.clusters(options.size)
    tables = geometry.l1_entries(options.size) * 2
    per_block = geometry.refcount_block_entries
    blocks = div_round_up(guest + tables + options.luks_clusters + 1, per_block) + 1
    blocks += div_round_up(blocks, per_block)
    table_bytes = min(blocks * 8, MAX_REFCOUNT_TABLE_BYTES)
    return max(1, div_round_up(table_bytes, geometry.cluster_size))
