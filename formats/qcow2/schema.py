"""The on-disk structures of qcow2, as bytes; nothing here opens a file or judges a value.

Source: QEMU's published specification of the format (docs/interop/qcow2), whose section titles
the comments name. All integers are big-endian.
"""

from __future__ import annotations

import enum

from construct import (
    Bytes,
    Const,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Struct,
)

from imgtool.schema.fields import Flags

MAGIC = b"QFI\xfb"

HEADER_V2_LENGTH = 72
HEADER_V3_LENGTH = 104
#: With the compression type, padded to a multiple of 8.
HEADER_LENGTH = 112


class Incompatible(enum.IntFlag):
    """Header: incompatible features, which a reader must know in order to read."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    EXTERNAL_DATA_FILE = 1 << 2
    COMPRESSION_TYPE = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(enum.IntFlag):
    """Header: compatible features, which may be ignored."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(enum.IntFlag):
    """Header: autoclear features, whose bits a writer that does not know them clears."""

    BITMAPS = 1 << 0
    RAW_EXTERNAL_DATA = 1 << 1


class Crypt(enum.IntEnum):
    """Header: encryption method."""

    NONE = 0
    AES = 1
    LUKS = 2


class Compression(enum.IntEnum):
    """Header: compression type."""

    ZLIB = 0
    ZSTD = 1


class ExtensionType(enum.IntEnum):
    """Header extensions that the specification defines."""

    END = 0x00000000
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    CRYPTO = 0x0537BE77
    DATA_FILE = 0x44415441


# Header: the fields that versions 2 and 3 share.
HEADER_V2 = Struct(
    "magic" / Const(MAGIC),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
)

# Header: what version 3 adds, from byte 72 on.
HEADER_V3 = Struct(
    "incompatible_features" / Flags(Incompatible),
    "compatible_features" / Flags(Compatible),
    "autoclear_features" / Flags(Autoclear),
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
)

# Header: additional fields, from byte 104 on, present as far as header_length says.
HEADER_ADDITIONAL = Struct(
    "compression_type" / Int8ub,
    "unknown" / GreedyBytes,
)

# Header extensions: each is padded to a multiple of 8 bytes.
EXTENSION_HEAD = Struct("type" / Int32ub, "length" / Int32ub)

# Feature name table: one entry.
FEATURE_NAME = Struct("type" / Int8ub, "bit" / Int8ub, "name" / Bytes(46))

# Full disk encryption header pointer.
CRYPTO_POINTER = Struct("offset" / Int64ub, "length" / Int64ub)

# Bitmaps extension.
BITMAPS_EXTENSION = Struct(
    "nb_bitmaps" / Int32ub,
    "reserved" / Int32ub,
    "directory_size" / Int64ub,
    "directory_offset" / Int64ub,
)

# Snapshots: the fixed part of an entry of the snapshot table; the variable part follows it.
SNAPSHOT_HEAD = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_str_size" / Int16ub,
    "name_size" / Int16ub,
    "date_sec" / Int32ub,
    "date_nsec" / Int32ub,
    "vm_clock_nsec" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_data_size" / Int32ub,
)

# Snapshots: the extra data that is defined so far; an entry has as much of it as its size says.
SNAPSHOT_EXTRA = (
    ("vm_state_size_large", Int64ub),
    ("disk_size", Int64ub),
    ("icount", Int64ub),
)

# Bitmap directory: the fixed part of an entry.
BITMAP_HEAD = Struct(
    "bitmap_table_offset" / Int64ub,
    "bitmap_table_size" / Int32ub,
    "flags" / Int32ub,
    "type" / Int8ub,
    "granularity_bits" / Int8ub,
    "name_size" / Int16ub,
    "extra_data_size" / Int32ub,
)


class BitmapFlag(enum.IntFlag):
    """Bitmap directory: flags of one bitmap."""

    IN_USE = 1 << 0
    AUTO = 1 << 1
    EXTRA_DATA_COMPATIBLE = 1 << 2


# Cluster mapping: L1 table entry.
L1_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
# Cluster mapping: L2 table entry. Bit 63 says that the refcount is exactly one.
COPIED = 1 << 63
COMPRESSED = 1 << 62
L2_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
# Standard cluster descriptor, bit 0: reads as zeros (not with extended L2 entries).
ZERO_FLAG = 1
# Refcount table entry.
REFCOUNT_OFFSET_MASK = 0xFFFF_FFFF_FFFF_FE00
# Bitmap table entry; bit 0 stands for all ones where there is no offset.
BITMAP_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00

#: A cluster with extended L2 entries has this many subclusters.
SUBCLUSTERS = 32
