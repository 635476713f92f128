"""Files that are opened and created: what is refused, and what is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.errors import BadOption, ImageError, ReadOnly
from imgtool.storage.directory import named_by_user
from imgtool.storage.file import FileStorage
from tests.kit.hosts import xfs_disk
from tests.storage.hosts import posix


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        FileStorage.open(tmp_path / "none")
    assert caught.value.filename is not None
    assert not list(tmp_path.iterdir())


def test_extent_size_hint(tmp_path: Path) -> None:
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
    there: bool, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_create_says_if_it_made_the_file(tmp_path: Path) -> None:
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
def test_create_follows_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "image")
    with FileStorage.create(link) as storage:
        assert storage.created
    assert (tmp_path / "image").is_file()
    with FileStorage.create(link) as storage:
        assert not storage.created


@posix
def test_create_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        FileStorage.create(tmp_path / "image").close()
    finally:
        os.umask(before)
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", [FileStorage.open, FileStorage.create])
def test_a_directory(tmp_path: Path, call: Callable[..., FileStorage]) -> None:
    with pytest.raises(ImageError, match="It is a directory") as caught:
        call(tmp_path)
    assert caught.value.filename == str(tmp_path)


@posix
@pytest.mark.parametrize("call", [FileStorage.open, FileStorage.create])
def test_special_files(
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image").touch()
    as_it_was = os.stat(tmp_path / "image")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "stat", lambda *args, **options: as_it_was)
    with pytest.raises(ImageError, match="It is a FIFO"):
        FileStorage.open(tmp_path / "fifo")


def test_an_unknown_cache_mode(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="none, writeback"):
        FileStorage.create(tmp_path / "image", cache="maybe")
    assert not list(tmp_path.iterdir())


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_place_whose_directory_is_held_open(tmp_path: Path) -> None:
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
def test_does_not_outlive_exec(tmp_path: Path) -> None:
    with FileStorage.create(tmp_path / "image") as storage:
        number = storage.fileno()
        assert number is not None
        assert not os.get_inheritable(number)
        assert os.get_blocking(number)


def test_an_error_closes_the_file(tmp_path: Path) -> None:
    with FileStorage.create(tmp_path / "image") as storage:
        before = storage.fileno()
        for _ in range(5):
            with pytest.raises(ImageError):
                FileStorage.open(tmp_path / "image", writable=True)
    with FileStorage.open(tmp_path / "image") as storage:
        assert storage.fileno() == before


def test_one_that_is_forgotten_is_closed_and_complained_about(tmp_path: Path) -> None:
    storage = FileStorage.create(tmp_path / "image")
    with pytest.warns(ResourceWarning, match="unclosed"):
        del storage
    FileStorage.create(tmp_path / "image").close()


def test_a_read_only_file_is_not_copied_into(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    with FileStorage.open(tmp_path / "image") as storage, pytest.raises(ReadOnly):
        storage.copy_from(storage, 0, 0, 1)


def test_importing_costs_little() -> None:
    script = (
        "import sys; import imgtool.storage.file;"
        "print({'ctypes', 'mmap', 'fcntl', 'numpy', 'dataclasses'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
