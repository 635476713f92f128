"""Every limit on what an image may claim: the last value is accepted, the next one is refused.

One row a limit. ``use`` makes an image that claims a number and does what reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import imgtool
from imgtool.errors import CorruptImage, ImageError, OverBudget, UnsupportedFeature
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.storage.memory import MemoryStorage
from tests.kit import qcow2
from tests.kit.corrupt import patch, put
from tests.kit.disks import open_disk
from tests.kit.limits import within_limits
from tests.kit.qcow2 import ImageBuilder, deflate
from tests.kit.qcow2_parts import bitmap_entry, change, snapshot_entry

KiB, MiB = 1 << 10, 1 << 20
CLUSTER = 1 << 16

Use = Callable[[Path, int], object]


class Limit(NamedTuple):
    """A limit: the number that is accepted, its neighbour that is refused, and the complaint."""

    name: str
    use: Use
    accepted: int
    refused: int
    match: str
    error: type[ImageError] = CorruptImage


def built(size: int = MiB, **options: Any) -> bytes:
    builder = ImageBuilder(size, **options)
    builder.data(0)
    return builder.build()


def header_of(image: bytes) -> Header:
    return read_header(MemoryStorage(image, "disk.qcow2"))


def field(name: str, **others: int) -> Use:
    """A header field that is judged when the header is read."""
    return lambda path, value: header_of(change(built(), **others, **{name: value}))


def opened(path: Path, image: bytes, **options: object) -> Qcow2Device:
    """Write an image and open it; whoever looks for more closes it."""
    path.write_bytes(image)
    with open_disk(path, "qcow2", options=options) as device:
        assert isinstance(device, Qcow2Device)
        return device


def smallest_clusters(path: Path, bits: int) -> None:
    # The tables are laid out for clusters of another size, which the header does not show.
    header_of(change(built(cluster_bits=9), cluster_bits=bits, l1_size=100_000))


def largest_clusters(path: Path, bits: int) -> None:
    header_of(change(built(cluster_bits=21), cluster_bits=bits))


def l1_table(path: Path, entries: int) -> None:
    with path.open("wb") as file:
        file.write(change(built(), l1_size=entries, l1_table_offset=16 * MiB))
        file.truncate(64 * MiB)
    within_limits(lambda: open_disk(path).close())


def l1_of_snapshot(path: Path, entries: int) -> None:
    builder = ImageBuilder(MiB)
    builder.snapshot(b"1", b"one")
    image = builder.build()
    where = builder.places["snapshots"][0]
    image = patch(
        image, schema.SNAPSHOT_HEAD, where, l1_table_offset=16 * MiB, l1_size=entries
    )  # fmt: skip
    with path.open("wb") as file:
        file.write(image)
        file.truncate(64 * MiB)
    with open_disk(path) as device:
        assert isinstance(device, Qcow2Device)
        assert len(device.snapshots) == 1  # nothing is wrong until it is used
    within_limits(lambda: open_disk(path, options={"snapshot": "one"}).close())


def refcount_table(path: Path, clusters: int) -> None:
    """Read by whoever writes: it is a table like any other."""
    image = change(built(), refcount_table_clusters=clusters, refcount_table_offset=16 * MiB)
    table = ImageBuilder(MiB)
    table.data(0)
    table.build()
    block = table.places["refcount-block-0"][0]
    with path.open("wb") as file:
        file.write(image)
        file.truncate(32 * MiB)
        file.seek(16 * MiB)
        file.write(block.to_bytes(8, "big"))
    within_limits(lambda: open_disk(path, writable=True).close())


def cut_off(place: str, look: Callable[[Path], object], *, whole: int | None = None) -> Use:
    """A table that lies at the end of the file, which ends so many bytes after its end."""

    def use(path: Path, more: int) -> None:
        builder = ImageBuilder(MiB, cluster_bits=12)
        builder.data(0)
        builder.snapshot(b"1", b"one")
        add_bitmap(builder)
        image = builder.build()
        offset, length = builder.places[place]
        length = length if whole is None else whole
        if place == "refcount-table":
            length = builder.cluster_size
        # Whoever allocates clusters must find it counted where it goes.
        end = -(-len(image) // 4096)
        image = image.ljust(end * 4096, b"\0")
        image = put(image, builder.places["refcount-block-0"][0] + 2 * end, b"\0\1")
        moved = image[offset : offset + length].ljust(length, b"\0")
        image = repoint(image, builder, place, len(image)) + moved
        path.write_bytes(image[:more] if more < 0 else image + bytes(more))
        look(path)

    return use


def add_bitmap(builder: ImageBuilder) -> None:
    """Put a bitmap into the image being built."""
    data = builder.place(b"\1".ljust(32, b"\0"), "bitmap-data")
    table = builder.place(data.to_bytes(8, "big"), "bitmap-table")
    entry = bitmap_entry(b"b", bits=12, table=table, entries=1)
    directory = builder.place(entry, "directory")
    builder.extensions = [
        (qcow2.BITMAPS_EXTENSION, struct.pack(">IIQQ", 1, 0, len(entry), directory))
    ]
    builder.header["autoclear_features"] = qcow2.BITMAPS


def repoint(image: bytes, builder: ImageBuilder, place: str, offset: int) -> bytes:
    """Let whatever names a table name another place."""
    target = offset.to_bytes(8, "big")
    places = builder.places
    fields = {
        "l1": "l1_table_offset",
        "snapshots": "snapshots_offset",
        "refcount-table": "refcount_table_offset",
    }
    if place in fields:
        return change(image, **{fields[place]: offset})
    if place == "directory":
        return put(image, 104 + 8 + 16, target)
    where = {
        "l2-0": places["l1"],
        "0:l1": places["snapshots"],
        "refcount-block-0": places["refcount-table"],
        "bitmap-table": places["directory"],
        "bitmap-data": places["bitmap-table"],
    }[place][0]
    return put(image, where, target)


def reads(path: Path) -> None:
    with open_disk(path, "qcow2") as device:
        device.read_at(0, device.size)


def opens_snapshot(path: Path) -> None:
    open_disk(path, "qcow2", options={"snapshot": "one"}).close()


def lists_snapshots(path: Path) -> None:
    assert [one.name for one in imgtool.snapshots(path)] == ["one"]


def lists_bitmaps(path: Path) -> None:
    with open_disk(path, "qcow2") as device:
        assert isinstance(device, Qcow2Device)
        assert [one.name for one in device.bitmaps] == ["b"]


def reads_bitmap(path: Path) -> None:
    assert list(imgtool.dirty_ranges(path, "b")) == [(0, 4096)]


def writes(path: Path) -> None:
    with open_disk(path, "qcow2", writable=True) as device:
        device.write_at(512 * KiB, b"x")


def snapshots(entries: bytes, count: int) -> Callable[[Path], object]:
    def work(path: Path) -> int:
        image = change(ImageBuilder(MiB).build(), nb_snapshots=count, snapshots_offset=MiB)
        path.write_bytes(put(image, MiB, entries))
        return within_limits(lambda: len(imgtool.snapshots(path)), seconds=30)

    return work


def count_of_snapshots(path: Path, count: int) -> None:
    assert snapshots(snapshot_entry(2, 2) * count, count)(path) == count


def bytes_of_snapshots(path: Path, size: int) -> None:
    """A table of so many bytes, of entries as long as can be without names."""
    long = snapshot_entry(4, 4, 1000)
    count, rest = divmod(size, len(long))
    last = snapshot_entry(0, 0, rest - 40) if rest else b""
    snapshots(long * count + last, count + bool(rest))(path)


def extra_data(path: Path, size: int) -> None:
    snapshots(snapshot_entry(1, 1, size), 1)(path)


def snapshot_names(path: Path, size: int) -> None:
    """Ids and names of so many bytes in all, the longest that there can be."""
    lengths = [65535] * (size // 65535) + [size % 65535]
    entries = b"".join(snapshot_entry(length) for length in lengths)
    snapshots(entries, len(lengths))(path)


def bitmaps(path: Path, directory: bytes, count: int, *, size: int | None = None) -> None:
    builder = ImageBuilder(MiB, header={"autoclear_features": 1})
    where = builder.place(directory, "directory")
    length = len(directory) if size is None else size
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, struct.pack(">IIQQ", count, 0, length, where))]
    path.write_bytes(builder.build())

    def work() -> int:
        with open_disk(path) as device:
            assert isinstance(device, Qcow2Device)
            return len(device.bitmaps)

    assert within_limits(work, seconds=30) == count


def count_of_bitmaps(path: Path, count: int) -> None:
    bitmaps(path, bitmap_entry(b"n") * count, count)


def directory_size(path: Path, size: int) -> None:
    entry = bitmap_entry(b"n" * 999, extra=1)
    assert len(entry) == 1024
    whole = entry * (size // 1024)
    bitmaps(path, whole + bytes(size % 1024), size // 1024, size=size)


def bitmap_memory(path: Path, size: int) -> None:
    """A bitmap of so many bytes, a bit for 512 bytes, none of them set."""
    builder = ImageBuilder(size * 8 * 512, cluster_bits=21)
    clusters = -(-size // builder.cluster_size)
    table = builder.place(bytes(8 * clusters), "table")
    entry = bitmap_entry(b"b", bits=9, table=table, entries=clusters)
    directory = builder.place(entry, "directory")
    packed = struct.pack(">IIQQ", 1, 0, len(entry), directory)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    builder.header["autoclear_features"] = qcow2.BITMAPS
    path.write_bytes(builder.build())
    assert within_limits(lambda: list(imgtool.dirty_ranges(path, "b"))) == []


def bitmaps_together(path: Path, size: int) -> None:
    """Two bitmaps that are in memory at the same time and take so many bytes together."""
    imgtool.create(path, (size - 32 * MiB) * 8 * 512, format="qcow2", cluster_size="2M")
    with imgtool.open(path, writable=True) as device:
        store = device.bitmap_store  # type: ignore[attr-defined]
        store.add("first", 512 * (size - 32 * MiB) // (32 * MiB) if size <= 64 * MiB else 512)
        store.add("second", 512)


def backing_name(path: Path, length: int) -> None:
    image = put(built(), 1024, b"n" * length)
    found = header_of(change(image, backing_file_offset=1024, backing_file_size=length))
    assert found.backing_file == "n" * length


def end_of_backing_name(path: Path, end: int) -> None:
    image = put(built(cluster_bits=9), end - 4, b"base")
    found = header_of(change(image, backing_file_offset=end - 4, backing_file_size=4))
    assert found.backing_file == "base"


def place_of_backing_name(path: Path, offset: int) -> None:
    header_of(change(built(cluster_bits=9), backing_file_offset=offset, backing_file_size=0))


def decompressed(path: Path, length: int) -> None:
    """A compressed cluster that holds so many bytes."""
    builder = ImageBuilder(MiB)
    content = b"\7" * length
    builder.compressed(0, content[:CLUSTER].ljust(CLUSTER), payload=deflate(content))
    path.write_bytes(builder.build())
    with open_disk(path) as device:
        assert device.read_at(0, CLUSTER) == b"\7" * CLUSTER


def decompressed_zstd(path: Path, length: int) -> None:
    builder = ImageBuilder(MiB, compression="zstd")
    builder.compressed(0, b"\7" * CLUSTER, payload=qcow2.zstd(b"\7" * length))
    path.write_bytes(builder.build())
    with open_disk(path) as device:
        assert device.read_at(0, CLUSTER) == b"\7" * CLUSTER


def chain(path: Path, depth: int) -> None:
    names = [b"", *(f"{path.name}.{number}".encode() for number in range(1, depth))]
    for number, name in enumerate(names):
        builder = ImageBuilder(MiB, backing=name, backing_format=b"qcow2" if name else None)
        below = path if number == depth - 1 else path.with_name(f"{path.name}.{number + 1}")
        below.write_bytes(builder.build())
    open_disk(path).close()


def incompatible_bit(path: Path, bit: int) -> None:
    """Bits up to 4 are known: the extended L2 entries of the last need larger clusters."""
    table = b"".join(
        struct.pack(">BB46s", 0, number, f"feature {number}".encode()) for number in range(64)
    )
    header_of(
        built(header={"incompatible_features": 1 << bit}, extensions=[(qcow2.FEATURE_NAMES, table)])
    )


LIMITS = [
    Limit("cluster bits, least", smallest_clusters, 9, 8, r"cluster size: 2\^8"),
    Limit("cluster bits, most", largest_clusters, 21, 22, r"cluster size: 2\^22"),
    Limit("refcount order", field("refcount_order"), 6, 7, r"2\^7 bits"),
    Limit("header length, least", field("header_length"), 104, 103, "103 is too short"),
    Limit("header length, most", field("header_length"), CLUSTER, CLUSTER + 1, "exceeds"),
    Limit("version", field("version"), 3, 4, "version 4", UnsupportedFeature),
    Limit("L1 offset", field("l1_table_offset"), (1 << 56) - CLUSTER, 1 << 56, "too far out"),
    Limit(
        "refcount table offset",
        field("refcount_table_offset"),
        (1 << 56) - CLUSTER,
        1 << 56,
        "too far out",
    ),
    Limit(
        "snapshot table offset",
        field("snapshots_offset", nb_snapshots=1),
        (1 << 56) - CLUSTER,
        1 << 56,
        "too far out",
    ),
    Limit("L1 entries for the disk", field("size"), 512 * MiB, 512 * MiB + 1, "too small"),
    Limit("L1 table of 32 MiB", l1_table, 4 * MiB, 4 * MiB + 1, "L1 table is too large"),
    Limit("L1 table of a snapshot", l1_of_snapshot, 4 * MiB, 4 * MiB + 1, "L1 table is too large"),
    Limit("refcount table of 8 MiB", refcount_table, 128, 129, "refcount table is too large"),
    Limit("end of the L1 table", cut_off("l1", reads), 0, -1, "L1 table lies past the end"),
    Limit("end of an L2 table", cut_off("l2-0", reads), 0, -1, "L2 table lies past the end"),
    Limit("end of the refcount table", cut_off("refcount-table", writes), 0, -1, "past the end"),
    Limit(
        "end of a refcount block",
        cut_off("refcount-block-0", writes, whole=4096),
        0,
        -1,
        "past the end",
    ),
    Limit("end of a snapshot's L1", cut_off("0:l1", opens_snapshot), 0, -1, "past the end"),
    # The padding of the last entry need not be there.
    Limit(
        "end of the snapshot table", cut_off("snapshots", lists_snapshots), -4, -5, "past the end"
    ),
    Limit(
        "end of the bitmap directory", cut_off("directory", lists_bitmaps), 0, -1, "past the end"
    ),
    Limit("end of a bitmap table", cut_off("bitmap-table", reads_bitmap), 0, -1, "past the end"),
    Limit("end of a bitmap's data", cut_off("bitmap-data", reads_bitmap), 0, -1, "past the end"),
    Limit("snapshots", count_of_snapshots, 65536, 65537, "65537 snapshots, too many"),
    Limit("snapshot table of 64 MiB", bytes_of_snapshots, 64 * MiB, 64 * MiB + 48, "too large"),
    Limit("extra data of a snapshot", extra_data, 1024, 1025, "too much extra data"),
    Limit("names of snapshots", snapshot_names, 16 * MiB, 16 * MiB + 1, "too long names"),
    Limit("bitmaps", count_of_bitmaps, 65535, 65536, "counts 65536 bitmaps"),
    Limit("bitmap directory", directory_size, 65535 * 1024, 65535 * 1024 + 1, "too large"),
    Limit(
        "name of a bitmap",
        lambda path, length: bitmaps(path, bitmap_entry(b"n" * length), 1),
        1023,
        1024,
        "name of 1024 bytes",
    ),
    Limit(
        "granularity, least",
        lambda path, bits: bitmaps(path, bitmap_entry(b"n", bits=bits), 1),
        9,
        8,
        r"granularity of 2\^8",
    ),
    Limit(
        "granularity, most",
        lambda path, bits: bitmaps(path, bitmap_entry(b"n", bits=bits), 1),
        31,
        32,
        r"granularity of 2\^32",
    ),
    Limit(
        "table of a bitmap",
        lambda path, entries: bitmaps(path, bitmap_entry(b"n", table=CLUSTER, entries=entries), 1),
        8192,
        8193,
        "table that is too large",
    ),
    Limit("bitmap in memory", bitmap_memory, 64 * MiB, 64 * MiB + 1, "67108864 in all", OverBudget),
    Limit(
        "bitmaps in memory together",
        bitmaps_together,
        64 * MiB,
        64 * MiB + 512,
        "67108864 in all",
        OverBudget,
    ),
    Limit("backing file name", backing_name, 1023, 1024, "1024 bytes is too long"),
    Limit("end of the backing file name", end_of_backing_name, 512, 513, "too long"),
    Limit("place of the backing file name", place_of_backing_name, 512, 513, "outside the first"),
    Limit("decompressed, least", decompressed, CLUSTER, CLUSTER - 1, "does not fill"),
    Limit("decompressed zstd, least", decompressed_zstd, CLUSTER, CLUSTER - 1, "zstd"),
    Limit("images in a chain", chain, 64, 65, "deeper than 64", ImageError),
    Limit("incompatible features", incompatible_bit, 2, 5, "feature 5", UnsupportedFeature),
]


#: Those that take more than a second or two.
SLOW = ("snapshot table of 64 MiB", "bitmap directory")


@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(
            limit,
            id=limit.name.replace(" ", "-"),
            marks=[pytest.mark.slow] if limit.name in SLOW else [],
        )
        for limit in LIMITS
    ],
)
def test_limit(limit: Limit, tmp_path: Path) -> None:
    limit.use(tmp_path / "inside.qcow2", limit.accepted)
    # What goes wrong in a process of its own comes back as the text of a failure.
    with pytest.raises((ImageError, AssertionError), match=limit.match) as caught:
        limit.use(tmp_path / "outside.qcow2", limit.refused)
    assert f"{limit.error.__name__}" in f"{caught.typename} {caught.value}"


def test_one_cluster_is_decompressed_and_no_more(tmp_path: Path) -> None:
    """What a stream holds beyond a cluster is not looked at, and such a frame is refused."""
    for size in (CLUSTER + 1, 64 * MiB):
        decompressed(tmp_path / "disk.qcow2", size)
        with pytest.raises(CorruptImage):
            decompressed_zstd(tmp_path / "disk.qcow2", size)


# What is kept, and what is not


def test_unknown_autoclear_bits_are_cleared_by_the_first_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    unknown = (1 << 64) - 4
    image = built(header={"autoclear_features": unknown})
    path.write_bytes(image)
    for _ in range(2):
        with imgtool.open(path) as device:
            device.read_at(0, MiB)
        imgtool.info(path)
        imgtool.check(path)
        assert path.read_bytes() == image
    with imgtool.open(path, writable=True):
        pass
    assert header_of(path.read_bytes()).autoclear == 0


def test_unknown_extensions_are_kept(tmp_path: Path) -> None:
    """And so are unknown compatible bits, and the rest of a longer header, whatever is done."""
    path = tmp_path / "disk.qcow2"
    kept = [(0x11111111, b"one"), (0x22222222, bytes(range(256))), (0x11111111, b"")]
    image = built(extensions=kept, header_length=120, header={"compatible_features": 1 << 63})
    path.write_bytes(put(image, 112, b"unknown!"))
    with imgtool.open(path, writable=True) as device:
        device.write_at(0, b"x")
    imgtool.create_snapshot(path, "one")
    imgtool.bitmap(path, "b", "add")
    imgtool.resize(path, 2 * MiB)
    imgtool.rebase(path, None, unsafe=True)
    imgtool.bitmap(path, "b", "remove")
    header = header_of(path.read_bytes())
    assert [
        (one.type, one.data) for one in header.extensions if one.type & 0xFFFF == one.type >> 16
    ]
    found = [(one.type, one.data) for one in header.extensions]
    assert [one for one in found if one[0] in (0x11111111, 0x22222222)] == kept
    assert header.compatible == 1 << 63
    assert path.read_bytes()[112:120] == b"unknown!"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: imgtool.open(path, writable=True),
        lambda path: imgtool.resize(path, 2 * MiB),
        lambda path: imgtool.create_snapshot(path, "x"),
        lambda path: imgtool.bitmap(path, "x", "add"),
        lambda path: imgtool.rebase(path, None, unsafe=True),
    ],
)
def test_guessed_raw_is_never_written(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"d" * MiB)
    with pytest.raises(ImageError):
        write(path)
    assert path.read_bytes() == b"d" * MiB
