"""I/O with O_DIRECT: what is aligned, what is not, and file systems that refuse."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool.storage.file import FileStorage
from tests.storage.contract import in_threads


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.create(tmp_path / "image", cache="none") as storage:
        if storage.alignment == 1:
            pytest.skip("the file system has no O_DIRECT")
        yield storage


class Watch:
    """Notes which requests went through which descriptor."""

    def __init__(self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct: list[tuple[int, int]] = []
        self.plain: list[tuple[int, int]] = []
        self.refuse = False
        plain = storage.fileno()
        preadv, pwrite = os.preadv, os.pwrite

        def note(number: int, offset: int, length: int) -> None:
            if number == plain:
                self.plain.append((offset, length))
            else:
                self.direct.append((offset, length))
                if self.refuse:
                    raise OSError(errno.EINVAL, "Invalid argument")

        def read(number: int, buffers: Any, offset: int) -> int:
            note(number, offset, len(buffers[0]))
            return preadv(number, buffers, offset)

        def write(number: int, data: Any, offset: int) -> int:
            note(number, offset, len(data))
            return pwrite(number, data, offset)

        monkeypatch.setattr(os, "preadv", read)
        monkeypatch.setattr(os, "pwrite", write)


@pytest.fixture
def watch(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(storage, monkeypatch)


def test_aligned_requests_are_not_copied(storage: FileStorage, watch: Watch) -> None:
    buffer = mmap.mmap(-1, 4 << 20)
    buffer[:] = b"\xab" * (4 << 20)
    storage.write_at(8192, buffer)
    assert storage.read_into(8192, buffer) == 4 << 20
    assert watch.direct == [(8192, 4 << 20)] * 2
    assert not watch.plain


def test_unaligned_ends_go_through_the_page_cache(storage: FileStorage, watch: Watch) -> None:
    data = random.Random(1).randbytes(3 << 20)
    storage.write_at(4000, data)
    assert watch.plain == [(4000, 96), (3 << 20, 4000)]
    assert all(not (offset | length) % 4096 for offset, length in watch.direct)
    assert storage.size() == 4000 + len(data)
    watch.plain.clear()
    assert storage.read_at(4000, len(data)) == data
    assert not watch.plain
    assert all(not (offset | length) % 4096 for offset, length in watch.direct)


def test_neighbours_in_one_block_are_not_lost(storage: FileStorage) -> None:
    def work(number: int) -> None:
        for step in range(40):
            storage.write_at(step * 4096 + number * 512, bytes([number + 1]) * 512)

    in_threads(work, 8)
    block = b"".join(bytes([number + 1]) * 512 for number in range(8))
    assert storage.read_at(0, 40 * 4096) == block * 40


def test_a_request_refused_turns_it_off(storage: FileStorage, watch: Watch) -> None:
    watch.refuse = True
    storage.write_at(0, b"\xab" * 8192)
    assert watch.plain == [(0, 8192)]
    assert storage.read_at(0, 8193) == b"\xab" * 8192 + b"\0"
    storage.write_at(4096, bytes(4096))
    assert len(watch.direct) == 1


def test_a_read_refused_turns_it_off(storage: FileStorage, watch: Watch) -> None:
    storage.write_at(0, b"\xab" * 8192)
    watch.refuse = True
    assert storage.read_at(0, 8192) == b"\xab" * 8192
    assert storage.read_at(0, 8192) == b"\xab" * 8192
    assert len(watch.direct) == 2


def test_any_other_error_is_an_error(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*image"):
        storage.write_at(0, bytes(4096))
    with pytest.raises(OSError, match="Input/output error"):
        storage.read_at(0, 4096)


def test_a_file_system_that_refuses_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with FileStorage.create(tmp_path / "image", cache="none") as storage:
        assert storage.alignment == 1
        storage.write_at(1, b"abc")
        assert storage.read_at(0, 4) == b"\0abc"


def test_both_descriptors_are_closed(storage: FileStorage) -> None:
    storage.write_at(0, bytes(4096))
    directory = "/proc/self/fd"
    name = os.path.realpath(storage.name)

    def count() -> int:
        links = [f"{directory}/{number}" for number in os.listdir(directory)]
        return sum(os.path.realpath(link) == name for link in links)

    assert count() == 2
    storage.close()
    assert count() == 0
