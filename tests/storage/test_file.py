"""FileStorage beyond the contract: what it opens, caches, flushes, and gives back."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from imgtool.errors import BadOption, ImageError, ReadOnly
from imgtool.storage.base import HostRange
from imgtool.storage.directory import named_by_user
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.kit.hosts import loop_device, xfs_disk
from tests.storage.hosts import without

posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have such files")


class TestOpening:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            FileStorage.open(tmp_path / "none")
        assert caught.value.filename is not None
        assert not list(tmp_path.iterdir())

    def test_extent_size_hint(self, tmp_path: Path) -> None:
        import fcntl
        import struct

        def hint(path: Path) -> int:
            with open(path, "rb") as file:
                words = struct.unpack("5I8s", fcntl.ioctl(file, 0x801C581F, bytes(28)))
            return int(words[1]) if words[0] & 0x800 else 0

        with xfs_disk(tmp_path / "xfs") as folder:
            for size in (0, 2 << 20, 1000):
                FileStorage.create(folder / str(size), extent_size_hint=size).close()
            # What is no multiple of the block size the file system refuses; the file is made.
            assert [hint(folder / str(size)) for size in (0, 2 << 20, 1000)] == [0, 2 << 20, 0]

    @pytest.mark.parametrize(
        ("there", "when"),
        [(False, "made"), (False, "claimed"), (True, "made"), (True, "claimed"), (True, "emptied")],
    )
    def test_an_interrupted_create_leaves_what_was_there(
        self, there: bool, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "image"
        if there:
            path.write_bytes(b"old")
        step = {"made": "open", "claimed": "fstat", "emptied": "ftruncate"}[when]
        does = getattr(os, step)

        def interrupted(*arguments: object, **options: object) -> None:
            does(*arguments, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                FileStorage.create(path)
        assert path.exists() == there
        if there:
            assert path.read_bytes() == (b"" if when == "emptied" else b"old")

    def test_create_says_if_it_made_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        with FileStorage.create(path) as storage:
            assert storage.created
            storage.write_at(0, b"old")
        with FileStorage.create(path, nocow=True) as storage:
            assert not storage.created
            assert storage.size() == 0
        with FileStorage.open(path) as storage:
            assert not storage.created

    @posix
    def test_create_follows_a_link_that_leads_nowhere(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "image")
        with FileStorage.create(link) as storage:
            assert not storage.created
        assert (tmp_path / "image").is_file()

    @posix
    def test_create_respects_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            FileStorage.create(tmp_path / "image").close()
        finally:
            os.umask(before)
        assert (tmp_path / "image").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("call", [FileStorage.open, FileStorage.create])
    def test_a_directory(self, tmp_path: Path, call: Callable[..., FileStorage]) -> None:
        with pytest.raises(ImageError, match="It is a directory") as caught:
            call(tmp_path)
        assert caught.value.filename == str(tmp_path)

    @posix
    @pytest.mark.parametrize("call", [FileStorage.open, FileStorage.create])
    def test_special_files(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        call: Callable[..., FileStorage],
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(ImageError, match="It is a FIFO"):
            call(tmp_path / "fifo")
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("socket")
            with pytest.raises(ImageError, match="It is a socket"):
                call("socket")
        with pytest.raises(ImageError, match="It is a character device"):
            call("/dev/null")

    @posix
    def test_a_fifo_put_in_the_files_place_does_not_hang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "image").touch()
        as_it_was = os.stat(tmp_path / "image")
        os.mkfifo(tmp_path / "fifo")
        monkeypatch.setattr(os, "stat", lambda *args, **options: as_it_was)
        with pytest.raises(ImageError, match="It is a FIFO"):
            FileStorage.open(tmp_path / "fifo")

    def test_an_unknown_cache_mode(self, tmp_path: Path) -> None:
        with pytest.raises(BadOption, match="none, writeback"):
            FileStorage.create(tmp_path / "image", cache="maybe")
        assert not list(tmp_path.iterdir())

    def test_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with FileStorage.create("image") as storage:
            assert storage.name == "image"
            assert storage.directory == "."
            status = os.stat("image")
            assert storage.identity == (status.st_dev, status.st_ino)
        with FileStorage.open(tmp_path / "image") as storage:
            assert storage.name == str(tmp_path / "image")
            assert storage.directory == str(tmp_path)

    @posix
    def test_a_place_whose_directory_is_held_open(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        path = tmp_path / "folder" / "image"
        path.write_bytes(b"abc")
        place = named_by_user(str(path))
        with FileStorage.open(path, place=place) as storage:
            assert storage.read_at(0, 3) == b"abc"
            assert storage.names_from is not None
            (tmp_path / "folder").rename(tmp_path / "moved")
            assert os.listdir(f"/proc/self/fd/{storage.names_from.number}") == ["image"]
        with pytest.raises(FileNotFoundError) as caught:
            FileStorage.open(path, place=named_by_user(str(path)))
        assert caught.value.filename == str(path)

    @posix
    def test_does_not_outlive_exec(self, tmp_path: Path) -> None:
        with FileStorage.create(tmp_path / "image") as storage:
            number = storage.fileno()
            assert number is not None
            assert not os.get_inheritable(number)
            assert os.get_blocking(number)

    def test_an_error_closes_the_file(self, tmp_path: Path) -> None:
        with FileStorage.create(tmp_path / "image") as storage:
            before = storage.fileno()
            for _ in range(5):
                with pytest.raises(ImageError):
                    FileStorage.open(tmp_path / "image", writable=True)
        with FileStorage.open(tmp_path / "image") as storage:
            assert storage.fileno() == before

    def test_one_that_is_forgotten_is_closed_and_complained_about(self, tmp_path: Path) -> None:
        storage = FileStorage.create(tmp_path / "image")
        with pytest.warns(ResourceWarning, match="unclosed"):
            del storage
        FileStorage.create(tmp_path / "image").close()

    def test_a_read_only_file_is_not_copied_into(self, tmp_path: Path) -> None:
        (tmp_path / "image").touch()
        with FileStorage.open(tmp_path / "image") as storage, pytest.raises(ReadOnly):
            storage.copy_from(storage, 0, 0, 1)


class TestErrors:
    @pytest.mark.parametrize("cache", ["writeback", "writethrough"])
    def test_a_failed_flush_is_final(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
    ) -> None:
        without(monkeypatch, "fdatasync")
        calls = []

        def fail(number: int) -> None:
            calls.append(number)
            raise OSError(errno.EIO, "Input/output error")

        with FileStorage.create(tmp_path / "image", cache=cache) as storage:
            monkeypatch.setattr(os, "fsync", fail)
            if cache == "writeback":
                storage.write_at(0, b"abc")
                first: Callable[[], None] = storage.flush
            else:
                first = partial(storage.write_at, 0, b"abc")
            with pytest.raises(OSError, match="Input/output error"):
                first()
            monkeypatch.setattr(os, "fsync", lambda number: calls.append(number))
            for call in (
                storage.flush,
                lambda: storage.write_at(0, b"x"),
                lambda: storage.write_zeroes(0, 1),
                lambda: storage.truncate(0),
                lambda: storage.preallocate(0, 1),
                lambda: storage.copy_from(storage, 0, 10, 1),
            ):
                with pytest.raises(OSError, match="Input/output error") as caught:
                    call()
                assert caught.value.errno == errno.EIO
                assert caught.value.filename == str(tmp_path / "image")
            assert len(calls) == 1
            assert storage.read_at(0, 3) == b"abc"

    def test_unsafe_never_flushes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        monkeypatch.setattr(os, "fsync", calls.append)
        monkeypatch.setattr(os, "fdatasync", calls.append, raising=False)
        with FileStorage.create(tmp_path / "image", cache="unsafe") as storage:
            storage.write_at(0, b"abc")
            storage.flush()
        assert not calls

    @pytest.mark.parametrize("cache", ["writethrough", "directsync"])
    def test_each_change_is_flushed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
    ) -> None:
        calls: list[int] = []
        without(monkeypatch, "fdatasync")
        monkeypatch.setattr(os, "fsync", calls.append)
        with FileStorage.create(tmp_path / "image", cache=cache) as storage:
            storage.write_at(0, b"abc")
            storage.write_zeroes(0, 100)
            storage.truncate(200)
            storage.preallocate(0, 300)
            assert len(calls) == 4

    def test_the_file_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        without(monkeypatch, "pwrite")
        monkeypatch.setattr(os, "write", fail)
        with FileStorage.create(tmp_path / "image") as storage:
            with pytest.raises(OSError, match=r"No space left on device: .*image"):
                storage.write_at(0, b"abc")
            storage.flush()

    @posix
    def test_a_full_host_is_an_error(self, tmp_path: Path) -> None:
        import resource
        import signal

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with FileStorage.create(tmp_path / "image") as storage:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            try:
                with pytest.raises(OSError, match="too large"):
                    storage.write_at(9_000, bytes(2_000))  # the first 1000 bytes fit
                with pytest.raises(OSError, match="too large"):
                    storage.truncate(20_000)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                signal.signal(signal.SIGXFSZ, before)


def test_growing_does_not_cut_off_what_another_thread_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.ftruncate
    with FileStorage.create(tmp_path / "image") as storage:
        other = threading.Thread(target=storage.write_at, args=(50_000, b"abc"))

        def truncate(number: int, size: int) -> None:
            other.start()
            other.join(0.1)  # it has to wait for us, so this times out
            real(number, size)

        monkeypatch.setattr(os, "ftruncate", truncate)
        storage.write_zeroes(0, 10_000)
        other.join()
        assert storage.size() == 50_003
        assert storage.read_at(50_000, 3) == b"abc"


class TestHoles:
    """What is given back and what is kept; where the file system under the tests can do it."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[FileStorage]:
        with FileStorage.create(tmp_path / "image") as storage:
            storage.write_at(0, b"\xff" * (1 << 20))
            storage.flush()
            if len(list(storage.ranges(0, 2 << 20))) != 2 or storage.allocated() < 1 << 20:
                pytest.skip("the file system does not tell where data lies")
            yield storage

    def test_punching_gives_blocks_back(self, storage: FileStorage) -> None:
        before = storage.allocated()
        storage.write_zeroes(256 << 10, 512 << 10)
        assert storage.allocated() <= before - (512 << 10)
        assert list(storage.ranges(0, 1 << 20)) == [
            HostRange(0, 256 << 10, True),
            HostRange(256 << 10, 512 << 10, False),
            HostRange(768 << 10, 256 << 10, True),
        ]

    def test_zeros_past_the_end_occupy_nothing(self, storage: FileStorage) -> None:
        before = storage.allocated()
        storage.write_zeroes(1 << 20, 1 << 30)
        storage.truncate(1 << 40)
        assert storage.size() == 1 << 40
        assert storage.allocated() == before

    def test_without_unmap_storage_is_kept(self, storage: FileStorage) -> None:
        before = storage.allocated()
        storage.write_zeroes(0, 2 << 20, unmap=False)
        assert storage.size() == 2 << 20
        assert storage.allocated() >= before + (1 << 20)

    def test_ranges_are_cut_to_what_is_asked(self, storage: FileStorage) -> None:
        storage.write_zeroes(256 << 10, 512 << 10)
        assert list(storage.ranges(1000, 10)) == [HostRange(1000, 10, True)]
        assert list(storage.ranges(300_000, 10)) == [HostRange(300_000, 10, False)]
        assert list(storage.ranges((256 << 10) - 5, 10)) == [
            HostRange((256 << 10) - 5, 5, True),
            HostRange(256 << 10, 5, False),
        ]

    def test_a_hole_at_the_end_joins_what_lies_behind(self, storage: FileStorage) -> None:
        storage.truncate(2 << 20)
        assert list(storage.ranges(0, 3 << 20)) == [
            HostRange(0, 1 << 20, True),
            HostRange(1 << 20, 2 << 20, False),
        ]

    def test_a_host_that_cannot_punch_zeroes(
        self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from imgtool.storage import holes

        monkeypatch.setattr(holes, "punch", lambda *args: False)
        storage.write_zeroes(100, 500_000)
        assert storage.size() == 1 << 20
        assert storage.read_at(0, 500_200) == b"\xff" * 100 + bytes(500_000) + b"\xff" * 100

    def test_fallocate_is_repeated_when_interrupted(
        self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from imgtool.storage import holes

        answers = [errno.EINTR, errno.EINTR, 0]
        monkeypatch.setattr(holes, "system_fallocate", lambda: lambda *args: answers.pop(0))
        storage.write_zeroes(0, 4096)
        assert not answers

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_fallocate_that_fails_is_an_error(
        self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        from imgtool.storage import holes

        monkeypatch.setattr(holes, "system_fallocate", lambda: lambda *args: code)
        with pytest.raises(OSError, match="image") as caught:
            storage.write_zeroes(0, 4096)
        assert caught.value.errno == code

    def test_a_file_system_that_cannot_tell(
        self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
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
        self, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "lseek", lambda number, offset, whence: offset)
        assert list(storage.ranges(0, 1 << 20)) == [HostRange(0, 1 << 20, True)]


class TestCopying:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Iterator[FileStorage]:
        with FileStorage.create(tmp_path / "source") as storage:
            storage.write_at(0, bytes(range(256)) * 400)
            yield storage

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[FileStorage]:
        with FileStorage.create(tmp_path / "target") as storage:
            yield storage

    def test_copies_inside_the_kernel(self, source: FileStorage, target: FileStorage) -> None:
        if not hasattr(os, "copy_file_range"):
            pytest.skip("only Linux copies inside the kernel")
        assert target.copy_from(source, 1000, 5000, 50_000) == 50_000
        assert target.size() == 55_000
        assert target.read_at(5000, 50_000) == source.read_at(1000, 50_000)
        assert target.read_at(0, 5000) == bytes(5000)
        assert target.copy_from(source, 0, 0, 0) == 0

    def test_stops_where_the_source_ends(self, source: FileStorage, target: FileStorage) -> None:
        assert target.copy_from(source, 102_000, 0, 1000) in (0, 400)

    def test_needs_two_files(self, target: FileStorage) -> None:
        assert target.copy_from(MemoryStorage(b"abc"), 0, 0, 3) == 0
        assert target.size() == 0

    def test_a_host_that_cannot(
        self, source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without(monkeypatch, "copy_file_range")
        assert target.copy_from(source, 0, 0, 1000) == 0

    def test_short_interrupted_and_refused(
        self, source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
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
        self, source: FileStorage, target: FileStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "copy_file_range", fail, raising=False)
        with pytest.raises(OSError, match=r"No space left on device: .*target"):
            target.copy_from(source, 0, 0, 1000)


class TestBlockDevice:
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[str]:
        backing = tmp_path / "backing"
        backing.write_bytes(b"\xff" * (1 << 20))
        with loop_device(backing) as device:
            yield str(device)

    @pytest.mark.parametrize("cache", ["writeback", "none"])
    def test_a_block_device(self, device: str, cache: str) -> None:
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

    def test_does_not_grow(self, device: str) -> None:
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


def test_importing_costs_little() -> None:
    script = (
        "import sys; import imgtool.storage.file;"
        "print({'ctypes', 'mmap', 'fcntl', 'numpy', 'dataclasses'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
