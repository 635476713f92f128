"""Writing to qcow2 images: the cases that a random walk seldom meets."""

from __future__ import annotations

import random
import struct
import threading
from array import array
from pathlib import Path

import pytest

from imgtool.device import BlockDevice
from imgtool.errors import CorruptImage, ImageError, OutOfRange, ReadOnly
from imgtool.extent import Kind
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.ops.create import create
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.kit.disks import ANY, open_disk
from tests.kit.qcow2 import COPIED, ImageBuilder

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
CLUSTER = 64 * KiB


def image(path: Path, size: int = 4 * MiB, **options: object) -> Path:
    """An empty image."""
    create(path, size, format="qcow2", options=options)
    return path


def writing(path: Path) -> WritableQcow2:
    device = open_disk(path, "qcow2", policy=ANY, writable=True)
    assert isinstance(device, WritableQcow2)
    return device


def sound(path: Path) -> None:
    """qemu-img finds no error and no leak."""
    found = referee.check(path)
    assert found["exit"] == 0, found


def pack(device: BlockDevice, cluster: int, byte: bytes) -> None:
    (encoded,) = device.encode(byte * device.encoded_size)
    assert encoded is not None
    device.write_encoded(cluster * device.encoded_size, [encoded])


# Packing


def test_packed_clusters_do_not_go_on_in_a_cluster_that_became_free(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    with writing(path) as device:
        pack(device, 0, b"a")
        device.write_at(0, b"b" * CLUSTER)
        device.flush()
        # The cluster that held the packed one is free now, and this takes it.
        device.write_at(CLUSTER, b"c" * CLUSTER)
        pack(device, 2, b"d")
        for index, byte in enumerate(b"bcd"):
            assert device.read_at(index * CLUSTER, CLUSTER) == bytes([byte]) * CLUSTER
    sound(path)


def test_packed_clusters_share_host_clusters(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    with writing(path) as device:
        for index in range(60):
            pack(device, index, bytes([index + 1]))
    sound(path)
    # Header, refcount table and block, L1 and L2 table, and one for all the data.
    assert path.stat().st_size <= 6 * CLUSTER


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_cluster_is_counted_more_often_than_its_refcount_can_say(
    tmp_path: Path, bits: int
) -> None:
    path = image(tmp_path / "a.qcow2", refcount_bits=bits)
    with writing(path) as device:
        for index in range(64):
            pack(device, index, bytes([index + 1]))
    sound(path)
    with open_disk(path) as device:
        assert [device.read_at(i * CLUSTER, 1)[0] for i in range(64)] == list(range(1, 65))


def test_nothing_remembered_of_a_decoded_cluster_that_is_gone(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    with writing(path) as device:
        pack(device, 0, b"a")
        # Reading a part is what makes a reader keep the whole.
        assert device.read_at(0, 512) == b"a" * 512
        device.write_at(0, b"b" * CLUSTER)
        device.flush()
        pack(device, 1, b"c")
        assert device.read_at(CLUSTER, 512) == b"c" * 512


# Entries that are wrong


def built(entry: int, bitmap: int = 0, **options: object) -> MemoryStorage:
    builder = ImageBuilder(MiB, cluster_bits=14, **options)  # type: ignore[arg-type]
    builder.data(1)
    builder.entry(0, entry, bitmap)
    return MemoryStorage(builder.build())


def test_cluster_0_is_never_written_to() -> None:
    for entry in (COPIED, COPIED | 1):
        store = built(entry)
        head = store.getvalue()[: 1 << 14]
        with open_disk(store, "qcow2", writable=True) as device:
            device.write_at(100, b"hello")
            assert device.read_at(98, 9) == b"\0\0hello\0\0"
        assert store.getvalue()[: 1 << 14] == head
    store = built(COPIED, 0xF << 32, extended_l2=True)
    head = store.getvalue()[: 1 << 14]
    with open_disk(store, "qcow2", writable=True) as device:
        device.write_at(100, b"hello")
    assert store.getvalue()[: 1 << 14] == head


@pytest.mark.parametrize("extended", [False, True])
def test_unaligned_clusters_are_not_written_to(extended: bool) -> None:
    store = built(COPIED | (5 << 14) | 512, 0xFFFFFFFF if extended else 0, extended_l2=extended)
    before = store.getvalue()
    with open_disk(store, "qcow2", writable=True) as device:
        for offset in (0, 100, 16000):
            with pytest.raises(CorruptImage, match="not aligned"):
                device.write_at(offset, b"hello")
        with pytest.raises(CorruptImage, match="not aligned"):
            device.reserve(0, 1 << 14)
    assert store.getvalue() == before


@pytest.mark.parametrize("extended", ["off", "on"])
def test_clusters_of_its_own_are_reserved_together(tmp_path: Path, extended: str) -> None:
    path = image(tmp_path / "a.qcow2", 64 * MiB, extended_l2=extended)
    with writing(path) as device:
        device.write_at(0, b"x" * MiB)
        device.write_at(2 * MiB, b"x" * MiB)
        device.write_at(MiB, b"x" * MiB)
        places = [(extent.offset, extent.length) for extent in device.reserve(0, 4 * MiB)]
        assert places == [(0, MiB), (MiB, MiB), (2 * MiB, MiB), (3 * MiB, MiB)]
        part = 2 * CLUSTER + CLUSTER // 2
        (extent,) = device.reserve(part, 3 * CLUSTER)
        (mapped,) = device.extents(part, 3 * CLUSTER)
        assert (extent.host_offset, extent.end) == (mapped.host_offset, part + 3 * CLUSTER)
        (place,) = device.extents(0, CLUSTER)
        device.write_zeroes(CLUSTER, CLUSTER)
        (extent,) = device.reserve(0, 2 * CLUSTER)
        assert (extent.host_offset, extent.length) == (place.host_offset, 2 * CLUSTER)


# Zeros


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}, {"compat": "0.10"}])
def test_zeros_over_much(tmp_path: Path, options: dict[str, object], unmap: bool) -> None:
    path = image(tmp_path / "a.qcow2", 32 * GiB, preallocation="metadata", **options)
    with writing(path) as device:
        # Some of it lies elsewhere, so that what is let go of comes in pieces.
        device.write_at(30 * GiB, b"x" * CLUSTER)
        device.write_zeroes(5 * CLUSTER + 512, 32 * GiB - 9 * CLUSTER, unmap=unmap)
        assert device.read_at(30 * GiB - 5, 10) == bytes(10)
        kinds = {extent.kind for extent in device.extents(6 * CLUSTER, 16 * GiB)}
        assert kinds == {Kind.UNALLOCATED if "compat" in options else Kind.ZERO}


def test_zeros_where_nothing_is_take_no_table(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", 64 * TiB)
    before = path.stat().st_size
    with writing(path) as device:
        device.write_at(0, b"x")
        for unmap in (False, True):
            device.write_zeroes(CLUSTER, 64 * TiB - CLUSTER, unmap=unmap)
            device.write_zeroes(63 * TiB + 5, 1000, unmap=unmap)
    assert path.stat().st_size < before + 3 * CLUSTER
    sound(path)


def test_zeros_over_a_large_backing_image(tmp_path: Path) -> None:
    base = image(tmp_path / "base.qcow2", 64 * GiB)
    path = tmp_path / "a.qcow2"
    create(
        path, None, format="qcow2", backing_file=base.name, backing_format="qcow2",
        options={"cluster_size": "4k"},
    )  # fmt: skip
    with writing(path) as device:
        device.write_zeroes(0, 4 * GiB)
        assert [extent.kind for extent in device.extents(0, 4 * GiB)] == [Kind.ZERO]
        # It went to the file in the meantime, and was not kept in memory.
        assert len(device._tables._pinned) * 4096 <= 20 * MiB
    sound(path)


# Requests that are refused


def test_requests_outside(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", MiB)
    with writing(path) as device:
        for offset, length in ((-1, 1), (MiB, 1), (MiB - 1, 2), (0, MiB + 1), (1 << 63, 1)):
            with pytest.raises(OutOfRange):
                device.write_at(offset, bytes(length))
            with pytest.raises(OutOfRange):
                device.write_zeroes(offset, length)
            with pytest.raises(OutOfRange):
                device.discard(offset, length)
            with pytest.raises(OutOfRange):
                device.reserve(offset, length)
        with pytest.raises(OutOfRange):
            device.write_encoded(MiB, [b"x"])
        device.write_at(MiB, b"")
        device.write_zeroes(MiB, 0)
        device.discard(0, 0)
    with open_disk(path) as device, pytest.raises(ReadOnly):
        device.reserve(0, 512)


def test_corrupt_images_are_not_written_to() -> None:
    builder = ImageBuilder(MiB)
    builder.header["incompatible_features"] = 2
    with pytest.raises(ReadOnly, match="corrupt"):
        open_disk(MemoryStorage(builder.build()), "qcow2", writable=True)


def test_dirty_images_are_repaired_before_they_are_written_to() -> None:
    builder = ImageBuilder(MiB)
    builder.header["incompatible_features"] = 1
    store = MemoryStorage(builder.build())
    with open_disk(store, "qcow2", writable=True) as device:
        device.write_at(0, b"x")
    assert store.getvalue()[72:80] == bytes(8)


def test_unknown_autoclear_bits_are_cleared_and_extensions_kept() -> None:
    builder = ImageBuilder(MiB, extensions=[(0x12345678, b"unknown to us")])
    builder.header["autoclear_features"] = 1 << 40
    store = MemoryStorage(builder.build())
    with open_disk(store, "qcow2"):
        assert store.getvalue()[88:96] == (1 << 40).to_bytes(8, "big")
    store = MemoryStorage(builder.build())
    with open_disk(store, "qcow2", writable=True) as device:
        device.write_at(0, b"x")
    assert store.getvalue()[88:96] == bytes(8)
    assert b"unknown to us" in store.getvalue()[:1024]


# Many at once


def test_threads(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2", 8 * MiB, cluster_size="4k")
    with writing(path) as device:
        own = 2 * MiB

        def work(number: int) -> None:
            chance = random.Random(number)
            model = bytearray(own)
            for step in range(120):
                length = chance.choice([1, 512, 4096, 30_000])
                offset = chance.randrange(own - length)
                data = bytes([step + 1]) * length
                kind = chance.randrange(4)
                if kind < 2:
                    device.write_at(number * own + offset, data)
                elif kind == 2:
                    data = bytes(length)
                    device.write_zeroes(number * own + offset, length, unmap=step % 2 == 0)
                else:
                    device.flush()
                    data = bytes(model[offset : offset + length])
                model[offset : offset + length] = data
                assert device.read_at(number * own + offset, length) == data
            contents[number] = bytes(model)

        contents: dict[int, bytes] = {}
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(contents[number] for number in range(4))
        assert device.read_at(0, device.size) == expected
    sound(path)
    assert referee.contents(path, "qcow2", tmp_path) == expected


# What is left of a failure


def test_closing_twice_and_using_it_then(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    device = writing(path)
    device.write_at(5, b"kept")
    device.close()
    device.close()
    with open_disk(path) as again:
        assert again.read_at(5, 4) == b"kept"


def test_a_table_that_cannot_be_read_fails_the_write(tmp_path: Path) -> None:
    path = image(tmp_path / "a.qcow2")
    with writing(path) as device:
        device.write_at(0, b"x")
    with path.open("r+b") as file:
        data = file.read()
        l1 = int.from_bytes(data[40:48], "big")
        file.seek(l1)
        file.write((COPIED | (1 << 40)).to_bytes(8, "big"))
    with writing(path) as device, pytest.raises(ImageError, match="past the end"):
        device.write_at(0, b"y")
    assert array("Q", path.read_bytes()[l1 : l1 + 8]) == array(
        "Q", (COPIED | (1 << 40)).to_bytes(8, "big")
    )


# Mapping


def test_what_is_not_allocated_costs_next_to_nothing(tmp_path: Path) -> None:
    """The disk has a quarter of a million L2 tables, of which two are there."""
    path = image(tmp_path / "a.qcow2", 8 * GiB, cluster_size=512)
    with writing(path) as device:
        device.write_at(3 * GiB, b"a")
        device.write_at(8 * GiB - 1, b"b")
        parts = list(device.own_extents(0, device.size))
        assert len(parts) < 200
        data = [part for part in parts if part.kind is Kind.DATA]
        assert [part.offset for part in data] == [3 * GiB, 8 * GiB - 512]
        assert sum(part.length for part in parts) == device.size


@pytest.mark.parametrize("size", [1 << 40, 1 << 63, (1 << 64) - 1])
def test_a_snapshot_of_a_disk_too_large_for_the_image(size: int) -> None:
    """It is refused before anything changes, and before memory is taken for its L1 table."""
    builder = ImageBuilder(1 << 20, cluster_bits=9)
    builder.data(0)
    builder.snapshot(b"1", b"one", extra=struct.pack(">QQ", 0, size))
    storage = MemoryStorage(builder.build())
    before = storage.getvalue()
    with (
        open_disk(storage, "qcow2", writable=True) as disk,
        pytest.raises(CorruptImage, match="too large"),
    ):
        disk.apply_snapshot("1")
    assert storage.getvalue() == before
