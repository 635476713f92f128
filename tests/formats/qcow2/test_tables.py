"""L2 tables in memory: loaded once, kept within a bound, and pinned while they change."""

from __future__ import annotations

import threading
from array import array

import pytest

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.tables import L2Tables, read_l1, read_table
from imgtool.schema.fields import big_endian_bytes
from imgtool.storage.memory import MemoryStorage
from tests.kit.faults import FailingStorage

GEOMETRY = Geometry(9)


def image(count: int) -> FailingStorage:
    """``count`` tables of 512 bytes, the first at 512, each full of its own number."""
    data = bytearray(512)
    for number in range(count):
        data += big_endian_bytes(array("Q", [number]) * 64)
    return FailingStorage(MemoryStorage(data), lambda kind, offset, length: 0)


def tables(count: int) -> tuple[L2Tables, FailingStorage]:
    storage = image(count)
    l1 = array("Q", [(1 << 63) | (512 * (number + 1)) for number in range(count)] + [0, 0])
    return L2Tables(storage, GEOMETRY, l1), storage


def test_loaded_once() -> None:
    found, storage = tables(3)
    assert storage.calls == {}
    for _ in range(3):
        table = found.get(1)
        assert table is not None
        assert table.tolist() == [1] * 64
    assert storage.calls == {"read": 1}
    assert found.get(3) is None
    assert storage.calls == {"read": 1}


def test_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgtool.formats.qcow2.tables.L2_CACHE_BYTES", 4 * 512)
    found, storage = tables(10)
    for index in range(10):
        found.get(index)
    assert len(found._tables) == 4
    found.get(9)
    assert storage.calls == {"read": 10}
    found.get(0)
    assert storage.calls == {"read": 11}


def test_pinned_tables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgtool.formats.qcow2.tables.L2_CACHE_BYTES", 2 * 512)
    found, storage = tables(10)
    mine = array("Q", [77] * 64)
    found.pin(4, mine)
    for index in range(10):
        found.get(index)
    assert found.get(4) is mine
    found.unpin([4])
    assert found.get(4) is mine
    for index in range(4):
        found.get(index)
    # Forgotten now, and read anew from where it is supposed to have been written.
    again = found.get(4)
    assert again is not None
    assert again.tolist() == [4] * 64
    assert storage.calls["read"] > 10


def test_another_l1_table() -> None:
    found, _ = tables(3)
    found.get(0)
    found.use(array("Q", [512 * 3]))
    table = found.get(0)
    assert table is not None
    assert table.tolist() == [2] * 64
    assert found.next_mapped(0, 5) == 0
    found.use(array("Q", [0, 0, 512]))
    assert found.next_mapped(0, 9) == 2
    assert found.next_mapped(3, 9) == 9


def test_bad_places() -> None:
    storage = image(1)
    with pytest.raises(CorruptImage, match="past the end"):
        L2Tables(storage, GEOMETRY, array("Q", [1 << 20])).get(0)
    with pytest.raises(CorruptImage, match="not aligned"):
        L2Tables(storage, Geometry(12), array("Q", [512])).get(0)
    with pytest.raises(CorruptImage, match="not aligned"):
        read_l1(storage, 100, 1, GEOMETRY)
    with pytest.raises(CorruptImage, match="too large"):
        read_l1(storage, 512, (32 << 20 >> 3) + 1, GEOMETRY)
    with pytest.raises(CorruptImage, match="past the end"):
        read_l1(storage, 512, 32 << 20 >> 3, GEOMETRY)
    with pytest.raises(CorruptImage, match="The thing"):
        read_table(storage, 512, 65, "The thing")
    assert storage.calls.get("read", 0) == 0, "memory was taken before the file was looked at"


def test_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgtool.formats.qcow2.tables.L2_CACHE_BYTES", 3 * 512)
    found, _ = tables(20)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for step in range(400):
            index = (seed * 7 + step * step) % 20
            table = found.get(index)
            if table is None or table[0] != index:
                wrong.append((index, table))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
