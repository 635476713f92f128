"""Damaged and hostile qcow2 images: a typed error or right data, whatever the bytes are.

Nothing else may be raised, however an image is cut off, flipped or made up; no image may take
more than 256 MiB of memory, or two seconds to open.
"""

from __future__ import annotations

import functools
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from imgtool.chain import Opener, Reference
from imgtool.errors import CorruptImage, ImageError, OutOfRange, WrongFormat
from imgtool.extent import Kind
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.ops.info import info
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import flips, overwrites, patch, put, truncations
from tests.kit.disks import NONE, open_disk
from tests.kit.effort import effort
from tests.kit.limits import MiB, measure, within_limits
from tests.kit.qcow2 import COPIED, ImageBuilder, deflate
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.qcow2_parts import bitmap_entry, snapshot_entry

#: One of each kind of table and entry, small enough to go through thousands of times.
_SMALL = ("v2", "512", "4k", "extended", "zstd", "refcount-1", "refcount-64", "unknown")


@functools.cache
def built(name: str) -> tuple[ImageBuilder, bytes]:
    builder = GALLERY[name]()
    return builder, builder.build()


def explore(image: bytes) -> bytes | None:
    """Do all that reads an image; return the disk if nothing is wrong with it.

    Every complaint has to be an ``ImageError`` that names the file, in one line.
    """
    try:
        with open_disk(MemoryStorage(image, "x.img"), "qcow2", follow=False) as device:
            assert isinstance(device, Qcow2Device)
            for look in (lambda: device.snapshots, lambda: device.bitmaps):
                complains(look)
            for wanted in ("1", "2"):
                complains(lambda: walk(open_snapshot(image, wanted)))  # noqa: B023
            return walk(device)
    except ImageError as error:
        accept(error)
        return None


def open_snapshot(image: bytes, wanted: str) -> Qcow2Device:
    storage = MemoryStorage(image, "x.img")
    device = open_disk(storage, "qcow2", options={"snapshot": wanted}, follow=False)
    assert isinstance(device, Qcow2Device)
    return device


def complains(look: Callable[[], object]) -> None:
    try:
        look()
    except ImageError as error:
        accept(error)


def accept(error: ImageError) -> None:
    assert not isinstance(error, OutOfRange)
    assert error.filename == "x.img"
    assert "\n" not in str(error)


def walk(device: Qcow2Device) -> bytes | None:
    """Cover the first and the last megabytes of a disk with extents and read what they hold."""
    size = device.size
    assert 0 <= size < 1 << 63
    spans = [(0, size)] if size <= 8 * MiB else [(0, 4 * MiB), (size - 4 * MiB, 4 * MiB)]
    whole = True
    for start, length in spans:
        # The table that is damaged should not keep us from the others.
        for offset in range(start, start + length, 1 << 18):
            step = min(1 << 18, start + length - offset)
            position = offset
            try:
                for extent in device.extents(offset, step):
                    assert extent.offset == position
                    assert extent.length > 0
                    position = extent.end
                assert position == offset + step
                device.read_at(offset, step)
            except ImageError as error:
                accept(error)
                whole = False
    return device.read_at(0, size) if whole and len(spans) == 1 else None


def go_through(images: Iterable[bytes]) -> int:
    """Explore many images in a process of their own, within the limits of memory."""

    def work() -> int:
        return sum(explore(image) is not None for image in images)

    unharmed, cost = measure(work, ceiling=2 << 30)
    assert cost.memory <= 256 * MiB, f"took {cost.memory / MiB:.0f} MiB"
    return unharmed


@pytest.mark.parametrize("name", _SMALL)
def test_undamaged(name: str) -> None:
    builder, image = built(name)
    assert explore(image) == builder.expected()


@pytest.mark.parametrize("name", _SMALL)
def test_cut_off_anywhere(name: str) -> None:
    builder, image = built(name)
    boundaries = [
        edge for offset, length in builder.regions() for edge in (offset, offset + length)
    ]
    lengths = truncations(len(image), boundaries)
    assert len(lengths) > 30
    go_through(image[:length] for length in lengths)
    for length in range(4):
        with pytest.raises(WrongFormat):
            open_disk(MemoryStorage(image[:length]), "qcow2")


@pytest.mark.parametrize("name", _SMALL)
def test_flipped_bits(name: str) -> None:
    builder, image = built(name)
    count = effort(120)
    unharmed = go_through(flips(image, builder.regions(), seed=1, count=count))
    # Many bits are reserved or refcounts, so some images stay whole, and some must not.
    assert 0 < unharmed < count


@pytest.mark.parametrize("name", _SMALL)
def test_overwritten_numbers(name: str) -> None:
    builder, image = built(name)
    count = effort(120)
    assert go_through(overwrites(image, builder.regions(), seed=2, count=count)) < count


@pytest.mark.parametrize("name", ["zstd", "512", "4k"])
def test_flipped_bits_in_compressed_data(name: str) -> None:
    """Formats without checksums cannot know; but a wrong stream is an error and nothing else."""
    builder, image = built(name)
    places = [
        (value & ((1 << 62 - builder.cluster_bits + 8) - 1), 64)
        for value, _ in (builder.mapping_of(index) for index in (8, 9, 10, 13, 14))
    ]
    go_through(flips(image, places, seed=3, count=effort(150)))


# Memory and time


def test_decompression_bomb_of_deflate() -> None:
    """A gigabyte of zeros in a megabyte: nobody unpacks more than a cluster of it."""
    builder = ImageBuilder(4 << 21, cluster_bits=21)
    engine = zlib.compressobj(9, zlib.DEFLATED, -12)
    block = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    bomb = block * 1024 + deflate(b"")
    assert len(bomb) < 1 << 21
    builder.compressed(0, bytes(1 << 21), payload=bomb)
    image = builder.build()

    def work() -> bool:
        with open_disk(MemoryStorage(image)) as device:
            return device.read_at(0, 1 << 21) == bytes(1 << 21)

    assert within_limits(work, memory=64 * MiB)


@pytest.mark.parametrize("known", [False, True])
def test_decompression_bomb_of_zstd(known: bool) -> None:
    """Terabytes of zeros in a few bytes, with and without a frame that says so."""
    builder = ImageBuilder(4 << 16, compression="zstd")
    blocks = [0x02 | 1 << 17 << 3] * 200
    window = b"\xa4" + struct.pack("<Q", 1 << 40) if known else b"\x00"
    head = b"\x28\xb5\x2f\xfd" + (b"\xc0\x88" + window[1:] if known else b"\x00\x88")
    body = b"".join(block.to_bytes(3, "little") + b"\0" for block in blocks)
    builder.compressed(0, bytes(1 << 16), payload=head + body)
    image = builder.build()

    def work() -> bytes | None:
        try:
            with open_disk(MemoryStorage(image)) as device:
                return device.read_at(0, 1 << 16)
        except CorruptImage:
            return None

    assert within_limits(work, memory=64 * MiB) in (bytes(1 << 16), None)


def test_zstd_window_of_128_mib_is_the_largest() -> None:
    for exponent, good in ((17, True), (18, False)):
        builder = ImageBuilder(1 << 16, compression="zstd")
        head = b"\x28\xb5\x2f\xfd\x00" + bytes([exponent << 3])
        block = (0x02 | 1 | 1 << 16 << 3).to_bytes(3, "little") + b"\7"
        builder.compressed(0, b"\7" * (1 << 16), payload=head + block)
        with open_disk(MemoryStorage(builder.build())) as device:
            if good:
                assert device.read_at(0, 1 << 16) == builder.expected()
            else:
                with pytest.raises(CorruptImage):
                    device.read_at(0, 1)


def _repeated(builder: ImageBuilder, entry: bytes) -> bytes:
    """The image with the whole of its first L2 table made of one entry."""
    builder.entry(0, builder.cluster_size)
    image = builder.build()
    return put(image, builder.places["l2-0"][0], entry * (builder.cluster_size // len(entry)))


@pytest.mark.parametrize("extended", [True, False])
def test_two_mib_l2_table_that_never_repeats(extended: bool) -> None:
    """Four million subclusters, or a quarter as many clusters, each unlike the one before."""
    clusters = 131072 if extended else 262144
    builder = ImageBuilder(clusters << 21, cluster_bits=21, extended_l2=extended)
    entry = struct.pack(">QQ", COPIED | 1 << 21, 0x55555555 if extended else 1)
    image = _repeated(builder, entry)

    def work() -> int:
        position = 0
        with open_disk(MemoryStorage(image)) as device:
            for extent in itertools.islice(device.extents(), 150_000):
                assert extent.offset == position
                position = extent.end
        return position

    expected = 150_000 << (16 if extended else 21)
    assert within_limits(work, memory=128 * MiB) == expected


def test_l1_entries_that_all_name_one_l2_table(tmp_path: Path) -> None:
    """Opening is quick and reading right; only who walks it all has to walk far."""
    builder = ImageBuilder(1 << 29)
    builder.data(0)
    path = tmp_path / "disk.qcow2"
    image = builder.build()
    table = builder.places["l2-0"][0]
    image = patch(
        image, schema.HEADER_V2, size=(4 * MiB) << 29, l1_size=4 * MiB, l1_table_offset=1 << 22
    )
    path.write_bytes(put(image, 1 << 22, (COPIED | table).to_bytes(8, "big") * (4 * MiB)))

    def work() -> bool:
        with open_disk(path) as device:
            last = device.read_at(device.size - (1 << 29), 1 << 16)
            first = next(iter(device.extents()))
            return last == device.read_at(0, 1 << 16) and first.kind is Kind.DATA

    assert within_limits(work)


def test_l1_table_without_l2_tables_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    image = ImageBuilder(1 << 29).build()
    image = patch(
        image, schema.HEADER_V2, size=(4 * MiB) << 29, l1_size=4 * MiB, l1_table_offset=1 << 22
    )
    with path.open("wb") as file:
        file.write(image)
        file.truncate((1 << 22) + 32 * MiB)

    def work() -> list[Kind]:
        with open_disk(path) as device:
            assert device.read_at(device.size // 2 + 5, 5) == bytes(5)
            return [extent.kind for extent in device.extents()]

    assert within_limits(work) == [Kind.UNALLOCATED]


@pytest.mark.parametrize("target", ["header", "l1", "l2-0", "refcount-table", "refcount-block-0"])
def test_tables_that_point_into_other_tables(target: str) -> None:
    """L1 and L2 entries that lead back to where they come from, and to the other metadata."""
    builder = ImageBuilder(1 << 20)
    builder.data(0)
    image = builder.build()
    where = builder.places[target][0]
    for name in ("l1", "l2-0"):
        looped = put(image, builder.places[name][0], (COPIED | where).to_bytes(8, "big"))
        within_limits(lambda looped=looped: explore(looped))  # type: ignore[misc]


# Snapshot tables


def snapshot_table(entries: bytes, count: int, path: Path) -> Path:
    image = ImageBuilder(1 << 20).build()
    image = patch(image, schema.HEADER_V2, nb_snapshots=count, snapshots_offset=1 << 20)
    path.write_bytes(put(image, 1 << 20, entries))
    return path


def snapshots_of(path: Path) -> list[int]:
    with open_disk(path) as device:
        assert isinstance(device, Qcow2Device)
        return [len(found.name) for found in device.snapshots]


def test_1024_bytes_of_extra_data(tmp_path: Path) -> None:
    assert snapshots_of(snapshot_table(snapshot_entry(1, 3, 1024), 1, tmp_path / "good.qcow2")) == [
        3
    ]
    for extra in (1025, 1 << 31, (1 << 32) - 1):
        table = patch(snapshot_entry(1, 3, 1024) * 2, schema.SNAPSHOT_HEAD, extra_data_size=extra)
        with pytest.raises(CorruptImage, match="extra data"):
            snapshots_of(snapshot_table(table, 1, tmp_path / "bad.qcow2"))


def test_16_mib_of_snapshot_names(tmp_path: Path) -> None:
    """The longest names, with a character in each that makes Python store them widest."""
    name = "\U0001f4be".encode().ljust(65535, b"n")
    wide = snapshot_entry(65535, 65535, 976, bytes(976) + name + name)
    count = 16 * MiB // 131070
    path = snapshot_table(wide * count, count, tmp_path / "good.qcow2")
    opener = Opener(NONE)
    assert within_limits(lambda: len(info(Reference(path), opener=opener).snapshots)) == count
    more = snapshot_table(wide * (count + 1), count + 1, tmp_path / "bad.qcow2")
    with pytest.raises(CorruptImage, match="names"):
        snapshots_of(more)


def test_snapshot_table_that_is_cut_off(tmp_path: Path) -> None:
    whole = snapshot_entry(2, 3, 16) * 2
    for length in range(0, len(whole) - 4, 5):
        path = snapshot_table(whole[:length], 2, tmp_path / "disk.qcow2")
        with pytest.raises(CorruptImage, match="past the end"):
            snapshots_of(path)


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (1 << 16, (4 << 20) + 1, "too large"),
        (1 << 16, 0xFFFFFFFF, "too large"),
        ((1 << 16) + 512, 1, "not aligned"),
        (1 << 62, 1, "past the end"),
    ],
)
def test_l1_table_of_a_snapshot(offset: int, size: int, message: str) -> None:
    """It is looked at when the snapshot is asked for, and no sooner."""
    builder = ImageBuilder(1 << 20)
    builder.snapshot(b"1", b"one")
    image = builder.build()
    place = builder.places["snapshots"][0]
    image = patch(image, schema.SNAPSHOT_HEAD, place, l1_table_offset=offset, l1_size=size)
    with open_disk(MemoryStorage(image)) as device:
        assert isinstance(device, Qcow2Device)
        assert len(device.snapshots) == 1
    with pytest.raises(CorruptImage, match=message):
        open_snapshot(image, "1")


# Bitmap directories


def bitmaps_of(
    directory: bytes, count: int, *, size: int | None = None, offset: int | None = None
) -> list[str]:
    builder = ImageBuilder(1 << 20, header={"autoclear_features": 1})
    where = builder.place(directory, "directory") if offset is None else offset
    length = len(directory) if size is None else size
    builder.extensions = [(0x23852875, struct.pack(">IIQQ", count, 0, length, where))]
    with open_disk(MemoryStorage(builder.build())) as device:
        assert isinstance(device, Qcow2Device)
        return [bitmap.name for bitmap in device.bitmaps]


def test_bitmap_directory() -> None:
    directory = (
        bitmap_entry(b"one")
        + bitmap_entry(b"n" * 1023, bits=9)
        + bitmap_entry(b"x", bits=31, extra=5)
    )
    assert bitmaps_of(directory, 3) == ["one", "n" * 1023, "x"]
    assert bitmaps_of(bitmap_entry(b"t", table=1 << 16, entries=8192), 1) == ["t"]


@pytest.mark.parametrize(
    ("directory", "count"),
    [
        (bitmap_entry(b"n" * 1024), 1),
        (bitmap_entry(b""), 1),
        (bitmap_entry(b"n", bits=8), 1),
        (bitmap_entry(b"n", bits=32), 1),
        (bitmap_entry(b"n", kind=0), 1),
        (bitmap_entry(b"n", table=512), 1),
        (bitmap_entry(b"n", table=1 << 16, entries=8193), 1),
        (bitmap_entry(b"n", table=1 << 16, entries=0xFFFFFFFF), 1),
        (bitmap_entry(b"n"), 2),
        (bitmap_entry(b"n") * 2, 1),
        (bitmap_entry(b"n")[:20], 1),
        (bitmap_entry(b"name" * 4)[:32], 1),
        (patch(bitmap_entry(b"n"), schema.BITMAP_HEAD, extra_data_size=0xFFFFFFFF), 1),
        (patch(bitmap_entry(b"n"), schema.BITMAP_HEAD, name_size=9), 1),
    ],
)
def test_bitmap_directories_that_are_wrong(directory: bytes, count: int) -> None:
    with pytest.raises(CorruptImage):
        bitmaps_of(directory, count)


def test_bitmap_directory_past_the_end_of_the_file() -> None:
    for offset in (1 << 30, 1 << 62):
        with pytest.raises(CorruptImage, match="past the end"):
            bitmaps_of(b"", 1, size=65535 * 1024, offset=offset)
