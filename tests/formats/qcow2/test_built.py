"""qcow2 images made byte by byte, among them what QEMU reads but never writes.

That the builder itself is right is seen in tests/compat/test_qcow2_built.py, where QEMU reads
these images too.
"""

from __future__ import annotations

import zlib

import pytest

from imgtool.chain import Opener, Reference, open_image
from imgtool.errors import BadOption, CorruptImage, ImageError
from imgtool.extent import Kind
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.refcounts import read_block, read_refcount_table
from imgtool.secrets import Secret, Secrets
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import put
from tests.kit.disks import check_extents, check_reads, check_threads, open_disk
from tests.kit.qcow2 import (
    COMPRESSED,
    COPIED,
    CRYPTO,
    EXTERNAL_DATA,
    ZERO,
    ImageBuilder,
    deflate,
    zstd,
)
from tests.kit.qcow2_gallery import GALLERY


@pytest.mark.parametrize("name", GALLERY)
def test_gallery(name: str) -> None:
    builder = GALLERY[name]()
    image = builder.build()
    with open_disk(MemoryStorage(image), "qcow2") as device:
        check_reads(device, builder.expected())
        check_extents(device, builder.expected())
        check_threads(device, builder.expected(), threads=4, count=10)


# Compressed clusters


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("skip", [0, 1, 511, 512, 513])
def test_compressed_clusters_at_any_byte(compression: str, bits: int, skip: int) -> None:
    """They straddle sectors and host clusters, and end anywhere in a sector."""
    builder = ImageBuilder(6 << bits, cluster_bits=bits, compression=compression)
    for index in range(6):
        noise = builder.fresh((1 << bits) // 2 if index % 3 else 100)
        builder.compressed(index, noise.ljust(1 << bits, bytes([index])), skip=skip)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, builder.expected())
        assert {extent.kind for extent in device.extents()} == {Kind.COMPRESSED}


def test_compressed_cluster_at_the_very_end_of_the_file() -> None:
    """The file may end with it, in the middle of a sector."""
    builder = ImageBuilder(1 << 16)
    content = bytes(range(256)) * 256
    builder.compressed(0, content)
    image = builder.build()
    payload = deflate(content)
    start = len(image) + 77
    sectors = ((start + len(payload) - 1) >> 9) - (start >> 9)
    entry = (COMPRESSED | sectors << 54 | start).to_bytes(8, "big")
    image = put(put(image, start, payload), builder.places["l2-0"][0], entry)
    with open_disk(MemoryStorage(image)) as device:
        assert device.read_at(0, 1 << 16) == content
    gone = open_disk(MemoryStorage(image[:start]))
    with gone, pytest.raises(CorruptImage, match="past the end"):
        gone.read_at(0, 1)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_more_sectors_than_needed(compression: str) -> None:
    builder = ImageBuilder(4 << 16, compression=compression)
    for index in range(4):
        builder.compressed(index, more_sectors=index * 20)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, builder.expected())


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_fewer_sectors_than_needed(compression: str) -> None:
    builder = ImageBuilder(1 << 16, compression=compression)
    builder.compressed(0, more_sectors=-20)
    with open_disk(MemoryStorage(builder.build())) as device, pytest.raises(CorruptImage):
        device.read_at(0, 1)


@pytest.mark.parametrize(
    "payload",
    [
        zlib.compress(bytes(1 << 16)),
        deflate(bytes((1 << 16) - 1)),
        deflate(b""),
        b"\0" * 100,
        b"\xff" * 100,
        zstd(bytes(1 << 16)),
    ],
    ids=["zlib-wrapper", "short", "empty", "zeros", "ones", "zstd"],
)
def test_bad_deflate(payload: bytes) -> None:
    builder = ImageBuilder(1 << 16)
    builder.compressed(0, payload=payload)
    with open_disk(MemoryStorage(builder.build(), "x.img")) as device:
        with pytest.raises(CorruptImage) as caught:
            device.read_at(65535, 1)
        assert caught.value.filename == "x.img"


@pytest.mark.parametrize(
    "payload",
    [
        zstd(bytes((1 << 16) - 1)),
        zstd(bytes(1 << 16))[:-3],
        zstd(b""),
        b"\0" * 100,
        b"\xff" * 100,
        deflate(bytes(1 << 16)),
        # A frame header with a reserved bit, and one that asks for a window of terabytes.
        b"\x28\xb5\x2f\xfd\x0c\x00\x01\x00\x00",
        b"\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00",
    ],
    ids=["short", "cut", "empty", "zeros", "ones", "deflate", "reserved", "window"],
)
def test_bad_zstd(payload: bytes) -> None:
    builder = ImageBuilder(1 << 16, compression="zstd")
    builder.compressed(0, payload=payload)
    with open_disk(MemoryStorage(builder.build(), "x.img")) as device:
        with pytest.raises(CorruptImage) as caught:
            device.read_at(65535, 1)
        assert caught.value.filename == "x.img"


def test_zstd_in_several_frames() -> None:
    builder = ImageBuilder(1 << 16, compression="zstd")
    content = builder.fresh()
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    payload = zstd(content[:1000]) + skippable + zstd(content[1000:])
    builder.compressed(0, content, payload=payload)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, content)


def test_deflate_stream_that_goes_on_after_its_cluster() -> None:
    """What follows a cluster's worth of output is nobody's business."""
    builder = ImageBuilder(1 << 16)
    content = builder.fresh()
    builder.compressed(0, content, payload=deflate(content + b"more" * 100))
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, content)


def test_one_compressed_cluster_shared_by_many() -> None:
    builder = ImageBuilder(20 << 12, cluster_bits=12)
    builder.compressed(0)
    entry = builder.mapping_of(0)
    for index in range(1, 20):
        builder.entry(index, *entry)
    with open_disk(MemoryStorage(builder.build())) as device:
        assert device.read_at(0, device.size) == builder.expected()[:4096] * 20


# Extended L2 entries


@pytest.mark.parametrize(("bits", "clusters"), [(14, 4), (16, 4), (21, 4), (14, 200), (16, 200)])
def test_subclusters(bits: int, clusters: int) -> None:
    """Few clusters are looked at one by one and many in bulk: both must see the same."""
    builder = ImageBuilder(clusters << bits, cluster_bits=bits, extended_l2=True, seed=bits)
    patterns = ["D" * 32, "Z" * 32, "." * 32, "DZ." * 10 + "DZ", "." * 31 + "D", "D" + "Z" * 31]
    for index in range(clusters):
        pattern = patterns[index % 7 % 6]
        if index % 7 == 6:
            builder.compressed(index)
        else:
            builder.subclusters(index, pattern, host=index % 5 != 3 or "D" in pattern)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, builder.expected(), count=20)
        check_extents(device, builder.expected())
        if clusters == 4:
            # Asking for all in small pieces gives the same as asking at once.
            step = builder.cluster_size // 2
            pieces = [device.extents(at, step) for at in range(0, device.size, step)]
            assert sum(e.length for piece in pieces for e in piece if e.kind is Kind.DATA) == sum(
                e.length for e in device.extents() if e.kind is Kind.DATA
            )


@pytest.mark.parametrize("clusters", [1, 64])
@pytest.mark.parametrize(
    ("host", "bitmap"),
    [(True, 1 << 32 | 1), (True, 1 << 63 | 1 << 31), (False, 1), (False, 1 << 31 | 1 << 32)],
)
def test_subclusters_that_contradict_themselves(clusters: int, host: bool, bitmap: int) -> None:
    builder = ImageBuilder(clusters << 14, cluster_bits=14, extended_l2=True)
    where = builder.data(clusters - 1)
    builder.entry(clusters - 1, where if host else 0, bitmap)
    with open_disk(MemoryStorage(builder.build(), "x.img")) as device:
        with pytest.raises(CorruptImage) as caught:
            device.read_at(0, device.size)
        assert caught.value.filename == "x.img"
        with pytest.raises(CorruptImage):
            list(device.extents())


def test_compressed_clusters_have_no_subclusters() -> None:
    builder = ImageBuilder(2 << 14, cluster_bits=14, extended_l2=True)
    builder.compressed(0)
    builder.entry(0, builder.mapping_of(0)[0], 0xFFFFFFFF_FFFFFFFF)
    with open_disk(MemoryStorage(builder.build())) as device:
        assert device.read_at(0, 1 << 14) == builder.expected()[: 1 << 14]


# Standard entries


@pytest.mark.parametrize("clusters", [4, 400])
def test_zero_clusters_of_version_2_are_invalid(clusters: int) -> None:
    builder = ImageBuilder(clusters << 12, cluster_bits=12, version=2)
    builder.data(0)
    builder.entry(clusters - 1, ZERO)
    with open_disk(MemoryStorage(builder.build(), "x.img")) as device:
        if clusters == 4:
            assert device.read_at(0, 4096) == builder.expected()[:4096]
        with pytest.raises(CorruptImage, match="version 2"):
            device.read_at(device.size - 1, 1)
        with pytest.raises(CorruptImage, match="version 2"):
            list(device.extents())


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("clusters", [4, 400])
def test_unaligned_data_cluster(clusters: int, extended: bool) -> None:
    builder = ImageBuilder(clusters << 14, cluster_bits=14, extended_l2=extended)
    builder.entry(clusters - 1, (1 << 14) + 512, 0)
    with open_disk(MemoryStorage(builder.build(), "x.img")) as device:
        with pytest.raises(CorruptImage, match=r"not aligned.*0x4200") as caught:
            device.read_at(0, device.size)
        assert caught.value.filename == "x.img"


@pytest.mark.parametrize("offset", [512, 8])
def test_unaligned_l2_table(offset: int) -> None:
    builder = ImageBuilder(1 << 20)
    builder.data(0)
    image = bytearray(builder.build())
    place = builder.places["l1"][0]
    table = builder.places["l2-0"][0]
    image[place : place + 8] = (COPIED | table + offset).to_bytes(8, "big")
    with open_disk(MemoryStorage(image, "x.img")) as device:
        if offset == 8:
            # Bits 1 to 8 of an L1 entry are reserved, and nobody looks at them.
            device.read_at(0, 1)
        else:
            with pytest.raises(CorruptImage, match="L2 table") as caught:
                device.read_at(0, 1)
            assert caught.value.filename == "x.img"


def test_l2_table_past_the_end_of_the_file() -> None:
    builder = ImageBuilder(1 << 20)
    builder.data(0)
    image = bytearray(builder.build())
    place = builder.places["l1"][0]
    for offset in (len(image), len(image) - 512 & ~0xFFFF, (1 << 56) - (1 << 16)):
        image[place : place + 8] = offset.to_bytes(8, "big")
        device = open_disk(MemoryStorage(image[: len(image) - 1], "x.img"))
        with device, pytest.raises(CorruptImage, match="past the end"):
            device.read_at(0, 1)


def test_data_past_the_end_of_the_file_reads_as_zeros() -> None:
    builder = ImageBuilder(1 << 20)
    builder.entry(0, COPIED | 1 << 40)
    with open_disk(MemoryStorage(builder.build())) as device:
        assert device.read_at(0, 1 << 16) == bytes(1 << 16)


def test_reserved_bits_of_l2_entries_are_not_looked_at() -> None:
    builder = ImageBuilder(2 << 16)
    host = builder.data(0)
    builder.entry(0, host | 0x3F << 56 | 0xFE << 1)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, builder.expected())


def test_all_of_the_l1_table_that_is_too_long() -> None:
    builder = ImageBuilder(1 << 20, l1_extra=5000)
    builder.data(3)
    with open_disk(MemoryStorage(builder.build())) as device:
        check_reads(device, builder.expected())


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 65535, 65537, 200_000])
def test_sizes_are_whole_sectors(size: int) -> None:
    """QEMU gives guests whole sectors; the part of one that is left over is not shown."""
    builder = ImageBuilder(size)
    if size:
        builder.data(builder.clusters - 1)
    with open_disk(MemoryStorage(builder.build())) as device:
        assert device.size == size // 512 * 512
        check_reads(device, builder.expected()[: device.size], count=5)


# Refcounts


@pytest.mark.parametrize("order", range(7))
def test_refcounts_of_every_width(order: int) -> None:
    builder = ImageBuilder(40 << 9, cluster_bits=9, refcount_order=order)
    for index in range(0, 40, 3):
        builder.data(index)
    if order:
        builder.snapshot(b"1", b"one")
    if order > 2:
        builder.compressed(1)
        builder.compressed(4, skip=3)
    image = builder.build()
    with open_disk(MemoryStorage(image)) as device:
        check_reads(device, builder.expected())
        assert isinstance(device, Qcow2Device)
        table = read_refcount_table(device.storage, device.header)
        counts: list[int] = []
        for offset in table:
            if offset:
                counts += read_block(device.storage, device.header, offset).tolist()
    expected = builder.refcounts()
    assert counts[: len(expected)] == expected
    assert not any(counts[len(expected) :])


# Snapshots


@pytest.mark.parametrize("extra", [0, 8, 15, 16, 23, 24, 32, 1024])
@pytest.mark.parametrize("version", [2, 3])
def test_snapshots_of_any_age(extra: int, version: int) -> None:
    builder = ImageBuilder(4 << 16, version=version)
    builder.data(0)
    builder.snapshot(b"7", "früh".encode(), extra=extra, vm_state_size=77)
    builder.data(1)
    builder.snapshot(b"12", b"7", extra=extra)
    builder.unmap(0)
    builder.data(2)
    image = builder.build()
    with open_disk(MemoryStorage(image)) as device:
        assert isinstance(device, Qcow2Device)
        check_reads(device, builder.expected())
        first, second = device.snapshots
        assert (first.id, first.name) == ("7", "früh")
        assert (second.id, second.name) == ("12", "7")
        assert first.vm_state_size == 77
        assert first.disk_size == (4 << 16 if extra >= 16 else None)
        assert first.icount is None
        assert len(first.extra_data) == extra
        assert (first.date_sec, first.date_nsec, first.vm_clock_nsec) == (1_600_000_000, 5, 7)
    for wanted, number in [("7", 0), ("früh", 0), ("12", 1)]:
        with open_disk(MemoryStorage(image), options={"snapshot": wanted}) as device:
            check_reads(device, builder.expected_snapshot(number))
            check_extents(device, builder.expected_snapshot(number))
    with pytest.raises(BadOption, match="'nobody'"):
        open_disk(MemoryStorage(image), options={"snapshot": "nobody"})


def test_snapshot_of_a_disk_that_had_another_size() -> None:
    builder = ImageBuilder(2 << 9, cluster_bits=9)
    builder.data(0)
    builder.data(1)
    builder.snapshot(b"1", b"small")
    builder.size = 200 << 9
    builder.data(199)
    builder.snapshot(b"2", b"large")
    builder.size = 5 << 9
    builder.unmap(199)
    image = builder.build()
    for number, size in enumerate([2 << 9, 200 << 9]):
        with open_disk(MemoryStorage(image), options={"snapshot": str(number + 1)}) as device:
            assert device.size == size
            check_reads(device, builder.expected_snapshot(number))


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_snapshot_of_an_impossible_size(size: int) -> None:
    builder = ImageBuilder(1 << 16)
    builder.snapshot(b"1", b"", extra=bytes(8) + size.to_bytes(8, "big"))
    image = builder.build()
    open_disk(MemoryStorage(image)).close()
    with pytest.raises(CorruptImage, match="too large"):
        open_disk(MemoryStorage(image), options={"snapshot": "1"})


def test_snapshot_whose_l1_table_is_shorter_than_its_disk() -> None:
    builder = ImageBuilder(1 << 16)
    builder.data(0)
    builder.snapshot(b"1", b"", extra=bytes(8) + (1 << 62).to_bytes(8, "big"))
    with open_disk(MemoryStorage(builder.build()), options={"snapshot": "1"}) as device:
        assert device.size == 1 << 62
        assert device.read_at(0, 1 << 16) == builder.expected()
        assert device.read_at((1 << 62) - 10, 10) == bytes(10)
        assert [extent.kind for extent in device.extents(1 << 61)] == [Kind.UNALLOCATED]


# External data files


@pytest.mark.parametrize("extended", [False, True])
def test_external_data_file(extended: bool) -> None:
    builder = ImageBuilder(8 << 16, external=True, extended_l2=extended)
    builder.data(0)
    builder.data(1, at=5 << 16)
    builder.data(3)
    builder.zero(4)
    builder.zero(6, host=True)
    data = MemoryStorage(builder.data_file, "disk.data")
    children = {"data-file": Reference(data)}
    with open_disk(MemoryStorage(builder.build()), children=children) as device:
        check_reads(device, builder.expected())
        check_extents(device, builder.expected())
        assert device.children["data-file"] is data
        found = {e.file for e in device.extents() if e.kind is Kind.DATA}
        assert found == {"disk.data"}


@pytest.mark.parametrize("clusters", [2, 400])
def test_zero_cluster_at_the_start_of_an_external_data_file(clusters: int) -> None:
    """Offset 0 is a place for data there, but for zeros it says that there is none."""
    builder = ImageBuilder(clusters << 12, cluster_bits=12, external=True)
    builder.zero(0, host=True)
    builder.zero(1, host=True)
    data = MemoryStorage(builder.data_file)
    children = {"data-file": Reference(data)}
    with open_disk(MemoryStorage(builder.build()), children=children) as device:
        first, second, *_ = device.extents()
        assert (first.length, first.kind, first.host_offset) == (4096, Kind.ZERO, None)
        assert (second.length, second.kind, second.host_offset) == (4096, Kind.ZERO, 4096)
        check_reads(device, builder.expected())


def test_compressed_cluster_beside_an_external_data_file() -> None:
    builder = ImageBuilder(2 << 16)
    builder.compressed(0)
    builder.header = {"incompatible_features": EXTERNAL_DATA}
    children = {"data-file": Reference(MemoryStorage(b"", "disk.data"))}
    device = open_disk(MemoryStorage(builder.build(), "x.img"), children=children)
    with device, pytest.raises(CorruptImage) as caught:
        device.read_at(0, 1)
    assert caught.value.filename == "x.img"


# Encryption


@pytest.mark.parametrize("method", [1, 2])
def test_encrypted_images_without_their_secret(method: int) -> None:
    """Their metadata can be looked at, and nothing else."""
    builder = ImageBuilder(1 << 20, header={"crypt_method": method})
    if method == 2:
        where = builder.allocate(4096)
        builder.extensions = [(CRYPTO, where.to_bytes(8, "big") + (4096).to_bytes(8, "big"))]
    builder.data(0)
    image = builder.build()
    with pytest.raises(BadOption, match="key-secret") as caught:
        open_disk(MemoryStorage(image, "x.img"))
    assert caught.value.filename == "x.img"
    with open_disk(MemoryStorage(image, "x.img"), follow=False) as device:
        assert device.size == 1 << 20
        with pytest.raises(ImageError):
            device.read_at(0, 1)


def test_encrypted_clusters_lie_nowhere_as_they_are() -> None:
    """What is in the file is not what a guest sees, so nobody may copy it from there."""
    builder = ImageBuilder(1 << 20, header={"crypt_method": 1})
    builder.data(0)
    image = MemoryStorage(builder.build())
    opener = Opener(secrets=Secrets(password=Secret("old")))
    with open_image(Reference(image), opener) as device:
        assert device.read_at(0, 65536) != builder.expected()[:65536]
        for extent in device.extents():
            if extent.host_offset is not None:
                assert extent.storage is not image
