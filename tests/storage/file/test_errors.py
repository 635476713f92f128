"""Flushes and their failures, and hosts that are full."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from imgtool.storage.file import FileStorage
from tests.storage.hosts import posix, without


@pytest.mark.parametrize("cache", ["writeback", "writethrough"])
def test_a_failed_flush_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
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


def test_unsafe_never_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(os, "fdatasync", calls.append, raising=False)
    with FileStorage.create(tmp_path / "image", cache="unsafe") as storage:
        storage.write_at(0, b"abc")
        storage.flush()
    assert not calls


@pytest.mark.parametrize("cache", ["writethrough", "directsync"])
def test_each_change_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
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


def test_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    without(monkeypatch, "pwrite")
    monkeypatch.setattr(os, "write", fail)
    with FileStorage.create(tmp_path / "image") as storage:
        with pytest.raises(OSError, match=r"No space left on device: .*image"):
            storage.write_at(0, b"abc")
        storage.flush()


@posix
def test_a_full_host_is_an_error(tmp_path: Path) -> None:
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
