"""Ranges of a disk in pieces: patterns keep their phase, and memory stays small."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgtool
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, UnsupportedFeature
from imgtool.ops import io

_MiB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[BlockDevice]:
    imgtool.create(tmp_path / "a.qcow2", 20 * _MiB + 512)
    device = imgtool.open(tmp_path / "a.qcow2", writable=True)
    with device:
        yield device


def test_patterns_keep_their_phase_over_pieces(disk: BlockDevice) -> None:
    pattern = bytes(range(251))
    length = 2 * io.PIECE + 1000
    io.write(disk, 77, length, pattern)
    whole = (pattern * (length // 251 + 1))[:length]
    assert disk.read_at(77, length) == whole
    assert b"".join(bytes(piece) for piece in io.read(disk, 77, length)) == whole
    assert disk.read_at(0, 77) == bytes(77)
    assert max(len(piece) for piece in io.read(disk, 77, length)) == io.PIECE


def test_compressed_patterns_keep_their_phase(disk: BlockDevice) -> None:
    pattern = bytes(range(251))
    start = 20 * _MiB - 3 * 65536
    length = disk.size - start
    io.write_compressed(disk, start, length, pattern)
    assert disk.read_at(start, length) == (pattern * (length // 251 + 1))[:length]
    kinds = {extent.kind for extent in disk.extents(start, length)}
    assert kinds == {imgtool.Kind.COMPRESSED}


def test_what_compression_does_not_shrink_is_written_as_it_is(disk: BlockDevice) -> None:
    noise = random.Random(3).randbytes(65536)
    io.write_compressed(disk, 65536, 65536, noise)
    assert disk.read_at(65536, 65536) == noise
    assert {extent.kind for extent in disk.extents(65536, 65536)} == {imgtool.Kind.DATA}


def test_compressed_writes_take_whole_clusters(disk: BlockDevice, tmp_path: Path) -> None:
    for offset, length in ((512, 65536), (0, 512), (0, 65536 + 512)):
        with pytest.raises(BadOption, match="whole clusters"):
            io.write_compressed(disk, offset, length, b"x")
    imgtool.create(tmp_path / "a.raw", "1M")
    with (
        imgtool.open(tmp_path / "a.raw", format="raw", writable=True) as raw,
        pytest.raises(UnsupportedFeature, match="compressed"),
    ):
        io.write_compressed(raw, 0, 65536, b"x")


def test_holds(disk: BlockDevice) -> None:
    length = io.PIECE + 5000
    io.write(disk, 0, length, b"\x05")
    assert io.holds(disk, 0, length, 5)
    assert io.holds(disk, 3, 0, 9)
    assert not io.holds(disk, 0, length + 1, 5)
    disk.write_at(length - 1, b"\x06")
    assert not io.holds(disk, 0, length, 5)
    assert io.holds(disk, 0, length - 1, 5)


def test_allocation_is_the_images_own(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "base.qcow2", _MiB)
    with imgtool.open(tmp_path / "base.qcow2", writable=True) as base:
        base.write_at(0, b"x" * _MiB)
    imgtool.create(
        tmp_path / "top.qcow2", 2 * _MiB, backing_file="base.qcow2", backing_format="qcow2"
    )
    cluster = 65536
    with imgtool.open(tmp_path / "top.qcow2", writable=True) as top:
        top.write_at(cluster, b"y" * cluster)
        top.write_zeroes(2 * cluster, cluster)
        found = list(io.allocation(top))
        assert found == [
            (0, cluster, False),
            (cluster, 2 * cluster, True),
            (3 * cluster, 2 * _MiB - 3 * cluster, False),
        ]
        assert list(io.allocation(top, 512, cluster)) == [
            (512, cluster - 512, False),
            (cluster, 512, True),
        ]
        assert list(io.allocation(top, 0, 0)) == []
