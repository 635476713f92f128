"""A guest disk as its firmware sees it: the partition table, read from a file object."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

SECTOR = 512
PROTECTIVE = 0xEE
EXT4_MAGIC_AT = 1024 + 56
EXT4_MAGIC = b"\x53\xef"


class Partition(NamedTuple):
    """Where a partition lies on its disk, in bytes."""

    offset: int
    length: int


def read_at(disk: io.RawIOBase, offset: int, length: int) -> bytes:
    """Read exactly ``length`` bytes of a disk."""
    disk.seek(offset)
    data = disk.read(length)
    assert data is not None
    assert len(data) == length, f"{len(data)} bytes instead of {length} at offset {offset}"
    return data


def read_partitions(disk: io.RawIOBase) -> list[Partition]:
    """Return the partitions of a disk with a GPT, or the primary ones of a DOS table."""
    boot_record = read_at(disk, 0, SECTOR)
    assert boot_record[510:] == b"\x55\xaa", "The disk has no partition table"
    found = []
    for entry in range(446, 510, 16):
        kind = boot_record[entry + 4]
        start, count = struct.unpack_from("<II", boot_record, entry + 8)
        if kind == PROTECTIVE:
            return read_gpt(disk)
        if kind:
            found.append(Partition(start * SECTOR, count * SECTOR))
    return found


def read_gpt(disk: io.RawIOBase) -> list[Partition]:
    """Return the partitions that the first GPT of a disk lists."""
    header = read_at(disk, SECTOR, SECTOR)
    assert header[:8] == b"EFI PART", "The disk has no GPT"
    table, count, width = struct.unpack_from("<QII", header, 72)
    entries = read_at(disk, table * SECTOR, count * width)
    found = []
    for at in range(0, len(entries), width):
        first, last = struct.unpack_from("<QQ", entries, at + 32)
        if any(entries[at : at + 16]):
            found.append(Partition(first * SECTOR, (last - first + 1) * SECTOR))
    return found


def find_ext4(disk: io.RawIOBase) -> Partition:
    """Return the one partition of a guest disk, which shall hold an ext4 file system."""
    (partition,) = read_partitions(disk)
    magic = read_at(disk, partition.offset + EXT4_MAGIC_AT, len(EXT4_MAGIC))
    assert magic == EXT4_MAGIC, f"No ext4 file system at offset {partition.offset}"
    return partition
