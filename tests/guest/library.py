"""What the tests read of a disk through the library, as a program that uses it would."""

from __future__ import annotations

from pathlib import Path

import imgtool
from tests.guest.partitions import Partition, find_ext4

CHUNK = 4 << 20


def locate_ext4(image: Path) -> Partition:
    """Find the ext4 file system of a disk through a file object over the image."""
    with imgtool.open(image) as disk, disk.as_file() as file:
        return find_ext4(file)


def copy_partition(image: Path, partition: Partition, target: Path) -> None:
    """Copy a partition of a disk to a sparse raw file, leaving out what is known to be zero."""
    with imgtool.open(image) as disk, open(target, "wb") as copy:
        copy.truncate(partition.length)
        for extent in disk.extents(partition.offset, partition.length):
            if extent.reads_zero:
                continue
            for offset in range(extent.offset, extent.end, CHUNK):
                copy.seek(offset - partition.offset)
                copy.write(disk.read_at(offset, min(CHUNK, extent.end - offset)))
