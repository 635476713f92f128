"""FileObjectStorage beyond the contract: the file objects that people have."""

from __future__ import annotations

import errno
import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import IO, Any, cast

import pytest

from imgtool.errors import ImageError, ReadOnly
from imgtool.storage.fileobj import FileObjectStorage


class Bare:
    """The least that will do: seek and read, and these never in one go."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.ends_sought = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.ends_sought += whence == io.SEEK_END
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 7))


def bare(data: bytes) -> IO[bytes]:
    return cast(IO[bytes], Bare(data))


def test_short_reads_are_completed() -> None:
    storage = FileObjectStorage(bare(bytes(range(100))))
    assert storage.read_only
    assert storage.name == "<file object>"
    assert storage.read_at(5, 80) == bytes(range(5, 85))
    assert storage.read_at(95, 10) == bytes(range(95, 100)) + bytes(5)
    with pytest.raises(ReadOnly):
        storage.write_at(0, b"x")
    storage.flush()


def test_the_end_of_what_is_read_only_is_sought_once() -> None:
    fileobj = Bare(bytes(100))
    storage = FileObjectStorage(cast(IO[bytes], fileobj))
    for _ in range(10):
        storage.read_at(0, 10)
        assert storage.size() == 100
    assert fileobj.ends_sought == 1


def test_short_writes_are_completed() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:7])

    fileobj = Slow()
    storage = FileObjectStorage(fileobj)
    storage.write_at(3, bytes(range(100)))
    assert fileobj.getvalue() == bytes(3) + bytes(range(100))


def test_an_object_that_takes_nothing_is_an_error() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            return 0

    with pytest.raises(OSError, match="takes no more bytes"):
        FileObjectStorage(Full()).write_at(0, b"abc")


def test_an_object_that_does_not_wait_is_an_error() -> None:
    class Pausing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() < 4 else cast(bytes, None)

    storage = FileObjectStorage(Pausing(bytes(10)))
    assert storage.read_at(0, 8) == bytes(8)
    with pytest.raises(BlockingIOError, match="not to wait"):
        storage.read_at(4, 4)


def test_objects_that_cannot_be_images(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(ImageError, match="can't seek"):
        FileObjectStorage(Pipe())
    for other in (object(), None, 3, b"disk.img"):
        with pytest.raises(TypeError, match="a binary file object or a Storage, not"):
            FileObjectStorage(cast(IO[bytes], other))
    with pytest.raises(TypeError, match="binary mode"):
        FileObjectStorage(cast(IO[bytes], io.StringIO()))


def test_is_closed_only_if_it_is_ours() -> None:
    fileobj = io.BytesIO(b"abc")
    FileObjectStorage(fileobj).close()
    assert fileobj.getvalue() == b"abc"
    storage = FileObjectStorage(fileobj, owned=True)
    storage.close()
    storage.close()
    assert fileobj.closed


def test_a_file_is_known_by_its_inode(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    status = os.stat(path)
    with open(path, "rb") as fileobj:
        storage = FileObjectStorage(fileobj)
        assert storage.name == str(path)
        assert storage.identity == (status.st_dev, status.st_ino)
        assert storage.fileno() is None
        assert storage.directory is None
    assert FileObjectStorage(io.BytesIO(), "disk").name == "disk"


def test_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "image.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 100))
    with gzip.open(path, "rb") as fileobj:
        storage = FileObjectStorage(cast(IO[bytes], fileobj))
        assert storage.read_only
        assert storage.size() == 25600
        assert storage.read_at(25000, 10) == (bytes(range(256)) * 100)[25000:25010]
        assert storage.read_at(10, 10) == bytes(range(10, 20))


def test_temporary_files() -> None:
    with tempfile.TemporaryFile() as fileobj:
        storage = FileObjectStorage(fileobj)
        assert storage.name == "<file object>"
        storage.write_at(5, b"abc")
        storage.flush()
        fileobj.seek(0)
        assert fileobj.read() == bytes(5) + b"abc"


def test_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    with open(tmp_path / "image", "w+b") as fileobj:
        storage = FileObjectStorage(fileobj)
        storage.write_at(0, b"abc")
        storage.flush()
        assert calls == [fileobj.fileno()]
        assert (tmp_path / "image").read_bytes() == b"abc"


def test_a_failed_flush_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open(tmp_path / "image", "w+b") as fileobj:
        storage = FileObjectStorage(fileobj)
        storage.write_at(0, b"abc")
        with monkeypatch.context() as context:
            context.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="Input/output error"):
                storage.flush()
        for call in (storage.flush, lambda: storage.write_at(0, b"x")):
            with pytest.raises(OSError, match="Input/output error"):
                call()
        assert storage.read_at(0, 3) == b"abc"
