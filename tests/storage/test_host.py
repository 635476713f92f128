"""Short and interrupted calls, simulated for each of the calls that read and write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool.storage import host
from imgtool.storage.file import FileStorage
from imgtool.storage.host import Descriptor
from tests.storage.hosts import without

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.create(tmp_path / "image") as storage:
        storage.write_at(0, CONTENT)
        yield storage


def hamper(real: Callable[..., Any], cut: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make a call of ``os`` fail with EINTR every other time, and do only part of its work."""
    calls = 0

    def call(number: int, what: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise InterruptedError
        return real(number, cut(what), *rest)

    return call


@pytest.mark.parametrize(
    ("call", "missing", "cut"),
    [
        ("preadv", (), lambda buffers: [buffers[0][:999]]),
        ("pread", ("preadv",), lambda length: min(length, 999)),
        ("read", ("preadv", "pread"), lambda length: min(length, 999)),
    ],
)
def test_short_and_interrupted_reads(
    storage: FileStorage,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    missing: tuple[str, ...],
    cut: Callable[[Any], Any],
) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this host has no {call}")
    without(monkeypatch, *missing)
    monkeypatch.setattr(os, call, hamper(getattr(os, call), cut))
    buffer = bytearray(b"\xaa" * (len(CONTENT) + 10))
    assert storage.read_into(0, buffer) == len(CONTENT)
    assert buffer == CONTENT + bytes(10)


@pytest.mark.parametrize(("call", "missing"), [("pwrite", ()), ("write", ("pwrite",))])
def test_short_and_interrupted_writes(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, call: str, missing: tuple[str, ...]
) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this host has no {call}")
    without(monkeypatch, *missing)
    with monkeypatch.context() as context:
        context.setattr(os, call, hamper(getattr(os, call), lambda data: data[:999]))
        storage.write_at(7, CONTENT)
    assert storage.read_at(0, 7 + len(CONTENT)) == CONTENT[:7] + CONTENT


def test_a_host_that_takes_nothing_is_full(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "pwrite")
    monkeypatch.setattr(os, "write", lambda number, data: 0)
    with pytest.raises(OSError, match="No space left"):
        storage.write_at(0, b"abc")


def test_large_requests_are_split(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LARGEST_REQUEST", 1000)
    sizes = []

    def pread(number: int, length: int, offset: int) -> bytes:
        sizes.append(length)
        return CONTENT[offset : offset + length]

    def pwrite(number: int, data: memoryview, offset: int) -> int:
        sizes.append(len(data))
        return len(data)

    without(monkeypatch, "preadv")
    monkeypatch.setattr(os, "pread", pread, raising=False)
    monkeypatch.setattr(os, "pwrite", pwrite, raising=False)
    assert storage.read_at(0, 2500) == CONTENT[:2500]
    storage.write_at(0, CONTENT[:2500])
    assert sizes == [1000, 1000, 500] * 2


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_an_interrupted_flush_goes_on(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    answers = [InterruptedError(), None]

    def sync(number: int) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    without(monkeypatch, "fdatasync")
    monkeypatch.setattr(os, call, sync, raising=False)
    storage.flush()
    assert not answers


def test_macos_is_asked_to_flush_the_drive(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    calls: list[object] = []
    without(monkeypatch, "fdatasync")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda number, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("fsync"))
    storage.flush()
    assert calls == [51]

    def refuse(number: int, command: int) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    storage.flush()
    assert calls == [51, "fsync"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_signals_do_not_disturb(storage: FileStorage) -> None:
    fired = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        while len(fired) < 20:
            storage.write_zeroes(0, 1 << 20)
            storage.write_at(0, CONTENT)
            assert storage.read_at(0, len(CONTENT)) == CONTENT
            storage.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_descriptor_closes_once(tmp_path: Path) -> None:
    first = Descriptor(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT))
    number = first.fileno()
    first.close()
    second = Descriptor(os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT))
    assert second.fileno() == number
    first.close()
    second.write(memoryview(b"still open"), 0)
    second.close()
    with pytest.raises(ValueError, match="closed"):
        first.fileno()
