"""Snapshots that share an L1 table: few, more than a refcount can count, and half a table."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import imgtool

CLUSTER = 512
MOST = 65535

#: What a snapshot table entry begins with, up to the size of its extra data.
ENTRY = struct.Struct(">QIHHIIQII")
SNAPSHOTS = struct.Struct(">IQ")
SNAPSHOTS_AT = 60


def with_snapshots(path: Path, count: int, *, shift: int = 0, cluster_size: int = CLUSTER) -> bytes:
    """An image whose one snapshot is in its table ``count`` times; return the disk's contents.

    Each of them has its L1 table ``shift`` bytes behind that of the one before. The refcounts know
    of one of them.
    """
    # As many L1 entries as fill several clusters, of which the first is in use.
    imgtool.create(path, "8M" if shift else "256k", cluster_size=cluster_size)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"the snapshot's".ljust(4 * CLUSTER, b"."))
        content = disk.read_at(0, disk.size)
    imgtool.create_snapshot(path, "one")
    image = bytearray(path.read_bytes())
    _, table = SNAPSHOTS.unpack_from(image, SNAPSHOTS_AT)
    offset, entries, id_size, name_size, *_, extra = ENTRY.unpack_from(image, table)
    length = ENTRY.size + extra + id_size + name_size
    entry = image[table : table + length].ljust(-(-length // 8) * 8, b"\0")
    place = len(image)
    for number in range(count):
        struct.pack_into(">QI", entry, 0, offset + number * shift, entries - bool(shift) * 100)
        image += entry
    image += bytes(-len(image) % cluster_size)
    SNAPSHOTS.pack_into(image, SNAPSHOTS_AT, count, place)
    path.write_bytes(image)
    return content


def contents(path: Path) -> list[bytes]:
    """What each of the snapshots shows."""
    found = []
    for snapshot in imgtool.snapshots(path):
        with imgtool.open(path, snapshot=snapshot.id) as disk:
            found.append(disk.read_at(0, disk.size))
    return found


def renumbered(path: Path) -> None:
    """Give the snapshots, whose IDs are one digit, different ones."""
    image = bytearray(path.read_bytes())
    count, place = SNAPSHOTS.unpack_from(image, SNAPSHOTS_AT)
    for number in range(count):
        _, _, id_size, name_size, *_, extra = ENTRY.unpack_from(image, place)
        image[place + ENTRY.size + extra] = ord("0") + number
        place += -(-(ENTRY.size + extra + id_size + name_size) // 8) * 8
    path.write_bytes(image)


def test_two_share_one(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    before = with_snapshots(path, 2)
    renumbered(path)
    assert imgtool.check(path, repair="all").corruptions_fixed
    assert imgtool.check(path).clean
    # It was once said to be sound, and not opened for writing.
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"new")
    assert contents(path) == [before] * 2
    imgtool.delete_snapshot(path, "one")
    assert imgtool.check(path).clean
    assert contents(path) == [before]


@pytest.mark.parametrize("bits", [1, 2])
def test_more_than_can_be_counted(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "disk.qcow2"
    before = with_snapshots(path, 6)
    renumbered(path)
    narrow(path, bits)
    imgtool.check(path, repair="all")
    assert imgtool.check(path).clean
    assert contents(path) == [before] * 6
    with imgtool.open(path, writable=True) as disk:
        assert disk.read_at(0, disk.size) == before
        disk.write_at(0, b"new")
    assert contents(path) == [before] * 6


def narrow(path: Path, bits: int) -> None:
    """Say that refcounts have so few bits; that none of them are right does not matter."""
    image = bytearray(path.read_bytes())
    struct.pack_into(">I", image, 96, bits.bit_length() - 1)
    path.write_bytes(image)


def test_as_many_as_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with_snapshots(path, MOST + 1, cluster_size=65536)
    imgtool.check(path, repair="all")
    assert imgtool.check(path).clean
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"new")


def test_tables_that_lie_upon_each_other_in_part(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    before = with_snapshots(path, 2, shift=CLUSTER)
    renumbered(path)
    shown = contents(path)
    assert shown[0] == before
    assert shown[1] != before
    imgtool.check(path, repair="all")
    assert imgtool.check(path).clean
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"new")
    assert contents(path) == shown
