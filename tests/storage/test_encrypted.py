"""EncryptedStorage: any range of bytes, over a file in which whole sectors are encrypted."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.crypto.sectors import CipherSpec
from imgtool.errors import ReadOnly
from imgtool.storage.encrypted import SECTOR, EncryptedStorage
from imgtool.storage.memory import MemoryStorage

_CIPHER = CipherSpec("aes", 16, "xts").with_key(bytes(range(32)))
_NOISE = random.Random(3).randbytes(1 << 17)
_SIZE = 100 * SECTOR


def _filled(start: int = 0) -> tuple[EncryptedStorage, MemoryStorage, bytearray]:
    plain = MemoryStorage(bytes(start))
    storage = EncryptedStorage(plain, _CIPHER, start)
    content = bytearray(_NOISE[:_SIZE])
    storage.write_at(0, content)
    return storage, plain, content


@pytest.mark.parametrize("start", [0, 512, 4096, 100])
def test_what_lies_in_the_file(start: int) -> None:
    """Sectors are numbered from the start of the part."""
    storage, plain, content = _filled(start)
    expected = bytearray(_SIZE)
    _CIPHER.encrypt(0, content, memoryview(expected))
    assert plain.getvalue() == bytes(start) + expected
    assert storage.size() == _SIZE
    assert storage.read_at(0, _SIZE) == content


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["write", "zero", "read"]),
            st.integers(0, _SIZE),
            st.sampled_from([0, 1, 3, 511, 512, 513, 1024, 2000, 20_000]),
        ),
        max_size=20,
    )
)
def test_any_range(operations: list[tuple[str, int, int]]) -> None:
    storage, _, content = _filled(4096)
    for kind, offset, length in operations:
        length = min(length, _SIZE - offset)
        if kind == "write":
            data = _NOISE[offset + 1 :][:length]
            storage.write_at(offset, data)
            content[offset : offset + length] = data
        elif kind == "zero":
            storage.write_zeroes(offset, length)
            content[offset : offset + length] = bytes(length)
        else:
            assert storage.read_at(offset, length) == content[offset : offset + length]
    assert storage.read_at(0, _SIZE) == content


def test_neighbours_inside_a_sector() -> None:
    """Threads that write to different parts of the same sectors do not undo each other's work."""
    storage, _, _ = _filled()
    step = 100

    def work(number: int) -> None:
        for _ in range(20):
            storage.write_at(number * step, bytes([number]) * step)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    expected = b"".join(bytes([number]) * step for number in range(40))
    assert storage.read_at(0, 40 * step) == expected


def test_buffers_of_any_kind() -> None:
    storage, _, content = _filled()
    storage.write_at(512, np.arange(1024, dtype=">u2").reshape(4, 256))
    found = np.empty((3, 512), dtype=np.uint8)
    assert storage.read_into(700, found) == found.nbytes
    content[512 : 512 + 2048] = np.arange(1024, dtype=">u2").tobytes()
    assert found.tobytes() == content[700 : 700 + found.nbytes]
    assert storage.read_into(0, bytearray()) == 0


def test_the_end_of_the_file() -> None:
    """What is not there counts as zeros, encrypted; how much is there is said truly."""
    storage, _, content = _filled()
    noise = bytearray(2 * SECTOR)
    _CIPHER.decrypt(_SIZE // SECTOR, bytes(2 * SECTOR), memoryview(noise))
    buffer = bytearray(3 * SECTOR)
    assert storage.read_into(_SIZE - SECTOR, buffer) == SECTOR
    assert buffer == content[-SECTOR:] + noise
    assert storage.read_into(_SIZE + 10, bytearray(5)) == 0


def test_growing_and_shrinking() -> None:
    storage, plain, content = _filled(4096)
    storage.truncate(SECTOR)
    assert plain.size() == 4096 + SECTOR
    storage.truncate(3 * SECTOR)
    assert storage.read_at(0, SECTOR) == content[:SECTOR]
    assert storage.read_at(SECTOR, SECTOR) != bytes(SECTOR)
    storage.preallocate(SECTOR, 4 * SECTOR)
    assert storage.size() == 5 * SECTOR
    assert storage.read_at(SECTOR, 4 * SECTOR) == bytes(4 * SECTOR)


def test_nobody_copies_around_it() -> None:
    storage, plain, _ = _filled()
    assert storage.identity is None
    assert storage.fileno() is None
    assert storage.copy_from(plain, 0, 0, SECTOR) == 0
    assert [found.is_data for found in storage.ranges(0, _SIZE)] == [True]
    assert list(storage.ranges(_SIZE - 1, 3)) == [(_SIZE - 1, 1, True), (_SIZE, 2, False)]


def test_closed_and_read_only() -> None:
    plain = MemoryStorage(bytes(SECTOR), read_only=True)
    storage = EncryptedStorage(plain, _CIPHER)
    for length in (SECTOR, 1):
        with pytest.raises(ReadOnly):
            storage.write_at(0, bytes(length))
    storage.close()
    with pytest.raises(ValueError, match="closed"):
        storage.read_at(0, 1)
