"""Partition tables, which raw disks begin with, as bytes. All integers are little-endian.

Sources: the UEFI specification, sections "Legacy Master Boot Record" and "GPT Disk Layout"; for
boot sectors of file systems, the FAT specification's BIOS parameter block.
"""

from __future__ import annotations

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

BOOT_SIGNATURE = b"\x55\xaa"
PROTECTIVE = 0xEE
GPT_MAGIC = b"EFI PART"

MBR_ENTRY = Struct(
    "flags" / Int8ul,
    "first_chs" / Bytes(3),
    "type" / Int8ul,
    "last_chs" / Bytes(3),
    "first_lba" / Int32ul,
    "sectors" / Int32ul,
)

MBR = Struct(
    "boot_code" / Bytes(446),
    "entries" / MBR_ENTRY[4],
    "signature" / Const(BOOT_SIGNATURE),
)

# What a file system's boot sector begins with.
BOOT_SECTOR = Struct(
    "jump" / Bytes(3),
    "oem" / Bytes(8),
    "sector_size" / Int16ul,
    "cluster_sectors" / Int8ul,
    "reserved_sectors" / Int16ul,
    "fats" / Int8ul,
    "root_entries" / Int16ul,
    "sectors" / Int16ul,
    "media" / Int8ul,
)

GPT_HEADER = Struct(
    "magic" / Const(GPT_MAGIC),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "header_crc" / Int32ul,
    "reserved" / Int32ul,
    "own_lba" / Int64ul,
    "other_lba" / Int64ul,
    "first_usable" / Int64ul,
    "last_usable" / Int64ul,
    "disk" / Bytes(16),
    "entries_lba" / Int64ul,
    "entry_count" / Int32ul,
    "entry_size" / Int32ul,
    "entries_crc" / Int32ul,
)

GPT_ENTRY = Struct(
    "type" / Bytes(16),
    "id" / Bytes(16),
    "first_lba" / Int64ul,
    "last_lba" / Int64ul,
    "attributes" / Int64ul,
    "name" / Bytes(72),
)
