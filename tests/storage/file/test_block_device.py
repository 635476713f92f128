"""Block devices in the place of files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgtool
from imgtool.storage.base import HostRange
from imgtool.storage.file import FileStorage
from tests.kit.hosts import loop_device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * (1 << 20))
    with loop_device(backing) as device:
        yield str(device)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_block_device(device: str, cache: str) -> None:
    with FileStorage.create(device, cache=cache) as storage:
        assert not storage.created
        assert storage.size() == 1 << 20
        assert storage.read_at(0, 4) == b"\xff" * 4
        assert list(storage.ranges(0, 2 << 20)) == [
            HostRange(0, 1 << 20, True),
            HostRange(1 << 20, 1 << 20, False),
        ]
        storage.truncate(1000)
        storage.preallocate(0, 1 << 20)
        storage.write_at(5, b"abc")
        storage.write_at((1 << 20) - 3, b"xyz")
        storage.write_zeroes(4096, 8192)
        storage.write_zeroes(65536, 8192, unmap=False)
        storage.write_zeroes(100_001, 10)
        storage.flush()
        assert storage.size() == 1 << 20
        assert storage.allocated() == 0
    with FileStorage.open(device) as storage:
        expected = bytearray(b"\xff" * (1 << 20))
        expected[5:8] = b"abc"
        expected[-3:] = b"xyz"
        for start, length in ((4096, 8192), (65536, 8192), (100_001, 10)):
            expected[start : start + length] = bytes(length)
        assert storage.read_at(0, 1 << 20) == expected


def test_does_not_grow(device: str) -> None:
    with FileStorage.open(device, writable=True) as storage:
        for call in (
            lambda: storage.truncate((1 << 20) + 1),
            lambda: storage.write_at((1 << 20) - 2, b"abc"),
            lambda: storage.write_zeroes(0, (1 << 20) + 1),
            lambda: storage.write_zeroes(0, (1 << 20) + 1, unmap=False),
            lambda: storage.preallocate(0, (1 << 20) + 1),
        ):
            with pytest.raises(OSError, match="No space left") as caught:
                call()
            assert caught.value.errno == errno.ENOSPC


def test_is_not_resized(device: str) -> None:
    with pytest.raises(imgtool.ImageError, match="Cannot resize device files"):
        imgtool.resize(device, 1 << 19, format="raw", shrink=True)
    with FileStorage.open(device) as storage:
        assert storage.read_at(0, 1 << 20) == b"\xff" * (1 << 20)
