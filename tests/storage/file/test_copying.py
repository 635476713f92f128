"""Copies inside the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.storage.hosts import without


@pytest.fixture
def source(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.create(tmp_path / "source") as storage:
        storage.write_at(0, bytes(range(256)) * 400)
        yield storage


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.create(tmp_path / "target") as storage:
        yield storage


def test_copies_inside_the_kernel(source: FileStorage, target: FileStorage) -> None:
    if not hasattr(os, "copy_file_range"):
        pytest.skip("only Linux copies inside the kernel")
    assert target.copy_from(source, 1000, 5000, 50_000) == 50_000
    assert target.size() == 55_000
    assert target.read_at(5000, 50_000) == source.read_at(1000, 50_000)
    assert target.read_at(0, 5000) == bytes(5000)
    assert target.copy_from(source, 0, 0, 0) == 0


def test_stops_where_the_source_ends(source: FileStorage, target: FileStorage) -> None:
    assert target.copy_from(source, 102_000, 0, 1000) in (0, 400)


def test_needs_two_files(target: FileStorage) -> None:
    assert target.copy_from(MemoryStorage(b"abc"), 0, 0, 3) == 0
    assert target.size() == 0


def test_a_host_that_cannot(
    source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "copy_file_range")
    assert target.copy_from(source, 0, 0, 1000) == 0


def test_short_interrupted_and_refused(
    source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[object] = [
        100,
        InterruptedError(),
        200,
        OSError(errno.EXDEV, "Invalid cross-device link"),
    ]
    asked = []

    def copy(source: int, target: int, count: int, start: int, place: int) -> object:
        asked.append((count, start, place))
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    assert target.copy_from(source, 10, 20, 1000) == 300
    assert asked == [(1000, 10, 20), (900, 110, 120), (900, 110, 120), (700, 310, 320)]


def test_a_disk_error_is_an_error(
    source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", fail, raising=False)
    with pytest.raises(OSError, match=r"No space left on device: .*target"):
        target.copy_from(source, 0, 0, 1000)
