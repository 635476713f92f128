"""What is given back and what is kept; where the file system under the tests can do it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.storage.base import HostRange
from imgtool.storage.file import FileStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.create(tmp_path / "image") as storage:
        storage.write_at(0, b"\xff" * (1 << 20))
        storage.flush()
        if len(list(storage.ranges(0, 2 << 20))) != 2 or storage.allocated() < 1 << 20:
            pytest.skip("the file system does not tell where data lies")
        yield storage


def test_punching_gives_blocks_back(storage: FileStorage) -> None:
    before = storage.allocated()
    storage.write_zeroes(256 << 10, 512 << 10)
    assert storage.allocated() <= before - (512 << 10)
    assert list(storage.ranges(0, 1 << 20)) == [
        HostRange(0, 256 << 10, True),
        HostRange(256 << 10, 512 << 10, False),
        HostRange(768 << 10, 256 << 10, True),
    ]


def test_zeros_past_the_end_occupy_nothing(storage: FileStorage) -> None:
    before = storage.allocated()
    storage.write_zeroes(1 << 20, 1 << 30)
    storage.truncate(1 << 40)
    assert storage.size() == 1 << 40
    assert storage.allocated() == before


def test_without_unmap_storage_is_kept(storage: FileStorage) -> None:
    before = storage.allocated()
    storage.write_zeroes(0, 2 << 20, unmap=False)
    assert storage.size() == 2 << 20
    assert storage.allocated() >= before + (1 << 20)


def test_ranges_are_cut_to_what_is_asked(storage: FileStorage) -> None:
    storage.write_zeroes(256 << 10, 512 << 10)
    assert list(storage.ranges(1000, 10)) == [HostRange(1000, 10, True)]
    assert list(storage.ranges(300_000, 10)) == [HostRange(300_000, 10, False)]
    assert list(storage.ranges((256 << 10) - 5, 10)) == [
        HostRange((256 << 10) - 5, 5, True),
        HostRange(256 << 10, 5, False),
    ]


def test_a_hole_at_the_end_joins_what_lies_behind(storage: FileStorage) -> None:
    storage.truncate(2 << 20)
    assert list(storage.ranges(0, 3 << 20)) == [
        HostRange(0, 1 << 20, True),
        HostRange(1 << 20, 2 << 20, False),
    ]


def test_a_host_that_cannot_punch_zeroes(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgtool.storage import holes

    monkeypatch.setattr(holes, "punch", lambda *args: False)
    storage.write_zeroes(100, 500_000)
    assert storage.size() == 1 << 20
    assert storage.read_at(0, 500_200) == b"\xff" * 100 + bytes(500_000) + b"\xff" * 100


def test_fallocate_is_repeated_when_interrupted(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgtool.storage import holes

    answers = [errno.EINTR, errno.EINTR, 0]
    monkeypatch.setattr(holes, "system_fallocate", lambda: lambda *args: answers.pop(0))
    storage.write_zeroes(0, 4096)
    assert not answers


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_fallocate_that_fails_is_an_error(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    from imgtool.storage import holes

    monkeypatch.setattr(holes, "system_fallocate", lambda: lambda *args: code)
    with pytest.raises(OSError, match="image") as caught:
        storage.write_zeroes(0, 4096)
    assert caught.value.errno == code


def test_a_file_system_that_cannot_tell(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    storage.truncate(2 << 20)
    assert list(storage.ranges(10, 4 << 20)) == [
        HostRange(10, (2 << 20) - 10, True),
        HostRange(2 << 20, (2 << 20) + 10, False),
    ]


def test_a_file_that_shrinks_while_it_is_asked(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "lseek", lambda number, offset, whence: offset)
    assert list(storage.ranges(0, 1 << 20)) == [HostRange(0, 1 << 20, True)]
