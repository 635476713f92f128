"""MemoryStorage beyond the contract."""

from __future__ import annotations

import errno

import pytest

from imgtool.storage.memory import MemoryStorage


def test_takes_and_gives_bytes() -> None:
    given = bytearray(b"abc")
    storage = MemoryStorage(given, "disk")
    assert storage.name == "disk"
    storage.write_at(3, b"def")
    assert given == b"abc"
    assert storage.getvalue() == b"abcdef"
    assert storage.allocated() == 6
    storage.close()
    assert storage.getvalue() == b"abcdef"
    assert storage.fileno() is None
    assert storage.directory is None


def test_two_are_two() -> None:
    first, second = MemoryStorage(), MemoryStorage()
    assert first.identity != second.identity


def test_grows_no_further_than_its_limit() -> None:
    storage = MemoryStorage(limit=1000)
    storage.write_at(0, bytes(1000))
    for call in (
        lambda: storage.write_at(999, b"ab"),
        lambda: storage.truncate(1001),
        lambda: storage.write_zeroes(0, 1 << 60),
        lambda: storage.preallocate(0, 1 << 60),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
    assert storage.size() == 1000


def test_has_a_limit_by_default() -> None:
    with pytest.raises(OSError, match="No space left"):
        MemoryStorage().truncate(1 << 60)


def test_copies_nothing_inside_the_kernel() -> None:
    assert MemoryStorage().copy_from(MemoryStorage(b"abc"), 0, 0, 3) == 0
