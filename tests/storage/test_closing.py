"""Closing what other threads are using: nobody reads or writes what is not the disk's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import imgtool
from imgtool import BlockDevice, Closed, ImageError
from imgtool.storage.file import FileStorage
from imgtool.storage.host import Descriptor
from tests.kit.effort import effort

SIZE = 64 << 10
OURS, FOREIGN = b"\x11" * 4096, b"\x22" * 4096


@pytest.fixture(autouse=True)
def quick_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def make(folder: Path, format: str) -> Path:
    path = folder / f"image.{format}"
    imgtool.create(path, SIZE, format=format)
    with imgtool.open(path, format=format, writable=True) as disk:
        for offset in range(0, SIZE, len(OURS)):
            disk.write_at(offset, OURS)
    (folder / "foreign").write_bytes(FOREIGN * 64)
    return path


def take_numbers(folder: Path) -> None:
    """Open files until one may have the number that has just become free, and close them."""
    numbers = [os.open(folder / "foreign", os.O_RDWR) for _ in range(4)]
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("writing", [False, True])
def test_a_disk_is_closed_under_way(tmp_path: Path, format: str, writing: bool, cache: str) -> None:
    path = make(tmp_path, format)

    def use(disk: BlockDevice, begun: threading.Barrier) -> str | None:
        begun.wait()
        while True:
            try:
                if writing:
                    disk.write_at(4096, OURS)
                assert disk.read_at(0, 4096) == OURS
            except Closed as error:
                return error.filename

    with ThreadPoolExecutor(3) as pool:
        for _ in range(effort(30)):
            begun = threading.Barrier(4)
            disk = imgtool.open(path, format=format, writable=writing, cache=cache)
            users = [pool.submit(use, disk, begun) for _ in range(3)]
            begun.wait()
            disk.close()
            take_numbers(tmp_path)
            for user in users:
                assert user.result(60) == str(path)
    assert (tmp_path / "foreign").read_bytes() == FOREIGN * 64
    if format == "qcow2":
        assert imgtool.check(path).clean


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_was_acknowledged_before_close_is_there(tmp_path: Path, format: str) -> None:
    path = make(tmp_path, format)
    for number in range(effort(20)):
        written: list[int] = []
        disk = imgtool.open(path, format=format, writable=True)

        def write(
            disk: BlockDevice = disk, number: int = number, done: list[int] = written
        ) -> None:
            for sector in range(SIZE // 512):
                try:
                    disk.write_at(sector * 512, bytes([number + 1]) * 512)
                except Closed:
                    return
                done.append(sector)

        writer = threading.Thread(target=write)
        writer.start()
        while not written:
            pass
        disk.close()
        writer.join(60)
        with imgtool.open(path, format=format) as disk:
            for sector in written:
                assert disk.read_at(sector * 512, 512) == bytes([number + 1]) * 512


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_closed_disk_says_so(tmp_path: Path, format: str) -> None:
    disk = imgtool.open(make(tmp_path, format), format=format, writable=True)
    disk.close()
    disk.close()
    calls: list[Callable[[], object]] = [
        lambda: disk.read_at(0, 1),
        lambda: disk.write_at(0, b"x"),
        lambda: disk.write_zeroes(0, 512),
        lambda: disk.resize(2 * SIZE),
        disk.flush,
    ]
    for call in calls:
        with pytest.raises(Closed, match="closed file") as caught:
            call()
        assert isinstance(caught.value, ImageError)
        assert isinstance(caught.value, ValueError)


def test_close_waits_for_a_call_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, go_on = threading.Event(), threading.Event()
    real = os.pread

    def slow(number: int, length: int, offset: int) -> bytes:
        under_way.set()
        assert go_on.wait(60)
        return real(number, length, offset)

    monkeypatch.setattr(os, "pread", slow)
    storage = FileStorage.open(make(tmp_path, "raw"))
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(storage.read_at, 0, 4096)
        assert under_way.wait(60)
        closing = pool.submit(storage.close)
        take_numbers(tmp_path)
        assert not closing.done()
        go_on.set()
        closing.result(60)
        assert reading.result(60) == OURS


def test_a_thread_that_was_broken_off_can_close(tmp_path: Path) -> None:
    # As if Ctrl-C had come between entering and the call.
    file = Descriptor(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    file.__enter__()
    file.close()
    assert file.closed


def test_interruptions_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> int:
        raise InterruptedError(4, "Interrupted system call")

    with FileStorage.create(tmp_path / "file") as storage:
        storage.write_at(0, b"abc")
        for call in ("pwrite", "pread", "preadv", "fdatasync", "ftruncate"):
            monkeypatch.setattr(os, call, interrupted)
        calls: list[Callable[[], object]] = [
            lambda: storage.write_at(0, b"x"),
            lambda: storage.read_at(0, 1),
            lambda: storage.truncate(1),
            storage.flush,
        ]
        for attempt in calls:
            with pytest.raises(InterruptedError):
                attempt()
