"""The contract, for each storage and for each host that lacks something."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.storage.fileobj import FileObjectStorage
from imgtool.storage.memory import MemoryStorage
from tests.storage.contract import StorageContract
from tests.storage.hosts import BAREST, without


class TestMemory(StorageContract):
    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        with MemoryStorage() as storage:
            yield storage

    @pytest.fixture
    def read_only(self) -> Iterator[Storage]:
        with MemoryStorage(self.CONTENT, read_only=True) as storage:
            yield storage


class TestBytesIO(StorageContract):
    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        with FileObjectStorage(io.BytesIO()) as storage:
            yield storage

    @pytest.fixture
    def read_only(self) -> Iterator[Storage]:
        class Reader(io.BytesIO):
            def writable(self) -> bool:
                return False

        with FileObjectStorage(Reader(self.CONTENT)) as storage:
            yield storage


class TestFileObject(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        with FileObjectStorage(open(tmp_path / "new", "w+b"), owned=True) as storage:
            yield storage

    @pytest.fixture
    def read_only(self, tmp_path: Path) -> Iterator[Storage]:
        path = tmp_path / "old"
        path.write_bytes(self.CONTENT)
        with FileObjectStorage(open(path, "rb"), owned=True) as storage:
            yield storage


class TestUnbufferedFileObject(TestFileObject):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        with FileObjectStorage(open(tmp_path / "new", "w+b", 0), owned=True) as storage:
            yield storage


class TestFile(StorageContract):
    cache = "writeback"
    missing: tuple[str, ...] = ()

    @pytest.fixture(autouse=True)
    def host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without(monkeypatch, *self.missing)

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        with FileStorage.create(tmp_path / "new", cache=self.cache) as storage:
            yield storage

    @pytest.fixture
    def read_only(self, tmp_path: Path) -> Iterator[Storage]:
        path = tmp_path / "old"
        path.write_bytes(self.CONTENT)
        with FileStorage.open(path, cache=self.cache) as storage:
            yield storage


class TestCacheNone(TestFile):
    cache = "none"


class TestCacheDirectsync(TestFile):
    cache = "directsync"


class TestCacheWritethrough(TestFile):
    cache = "writethrough"


class TestCacheUnsafe(TestFile):
    cache = "unsafe"


class TestWithoutPreadv(TestFile):
    missing = ("preadv",)


class TestWithoutPositionalCalls(TestFile):
    missing = ("preadv", "pread", "pwrite")


class TestWithoutSeekData(TestFile):
    missing = ("SEEK_DATA", "SEEK_HOLE")


class TestWithoutFallocate(TestFile):
    missing = ("fallocate",)


class TestWithoutAnyFallocate(TestFile):
    missing = ("fallocate", "posix_fallocate")


class TestWithoutFdatasync(TestFile):
    missing = ("fdatasync",)


class TestCacheNoneWithoutDirect(TestFile):
    cache = "none"
    missing = ("O_DIRECT",)


@pytest.mark.filterwarnings("ignore::imgtool.storage.locks.UnlockedWarning")
class TestBarest(TestFile):
    """About what Windows has."""

    missing = BAREST
