"""The qcow2 header: its limits, one by one, and what is parsed being built again as it was."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.budget import Budget
from imgtool.errors import CorruptImage, ImageError, OverBudget, UnsupportedFeature, WrongFormat
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.schema import Compression, ExtensionType
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.kit import qcow2
from tests.kit.corrupt import fields, put
from tests.kit.disks import open_disk
from tests.kit.effort import effort
from tests.kit.limits import within_limits
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import change

KiB, MiB = 1 << 10, 1 << 20


def header_of(image: bytes) -> Header:
    return read_header(MemoryStorage(image, "disk.qcow2"))


def built(size: int = MiB, **options: Any) -> bytes:
    builder = ImageBuilder(size, **options)
    builder.data(0)
    return builder.build()


# Limits. Each case is accepted as it is first given, and refused as it is then given.

FIELD_LIMITS = [
    ("version", {"version": 3}, {"version": 4}, UnsupportedFeature),
    ("version", {"version": 2}, {"version": 1}, UnsupportedFeature),
    ("version", {"version": 2}, {"version": 0xFFFFFFFF}, UnsupportedFeature),
    ("crypt", {"crypt_method": 2}, {"crypt_method": 3}, UnsupportedFeature),
    ("refcount-order", {"refcount_order": 6}, {"refcount_order": 7}, CorruptImage),
    ("refcount-order", {"refcount_order": 0}, {"refcount_order": 0xFFFFFFFF}, CorruptImage),
    ("l1-needed", {"l1_size": 1}, {"l1_size": 0}, CorruptImage),
    ("refcounts", {"refcount_table_clusters": 1}, {"refcount_table_clusters": 0}, CorruptImage),
    ("refcounts", {"refcount_table_clusters": 128}, {"refcount_table_clusters": 129}, CorruptImage),
    (
        "refcounts",
        {"refcount_table_clusters": 128},
        {"refcount_table_clusters": 0xFFFFFFFF},
        CorruptImage,
    ),
    (
        "refcount-offset",
        {"refcount_table_offset": 3 << 16},
        {"refcount_table_offset": (3 << 16) + 512},
        CorruptImage,
    ),
    (
        "refcount-offset",
        {"refcount_table_offset": (1 << 56) - (1 << 16)},
        {"refcount_table_offset": 1 << 56},
        CorruptImage,
    ),
    ("l1-offset", {}, {"l1_table_offset": (3 << 16) + 8}, CorruptImage),
    ("l1-offset", {}, {"l1_table_offset": 1 << 56}, CorruptImage),
    (
        "l1-offset",
        {"size": 0, "l1_size": 0, "l1_table_offset": 0},
        {"size": 0, "l1_size": 0, "l1_table_offset": 104},
        CorruptImage,
    ),
    ("snapshots", {"nb_snapshots": 65536}, {"nb_snapshots": 65537}, CorruptImage),
    ("snapshots-offset", {"nb_snapshots": 1}, {"snapshots_offset": 512}, CorruptImage),
    ("snapshots-offset", {"nb_snapshots": 1}, {"snapshots_offset": 1 << 56}, CorruptImage),
    ("snapshots-offset", {}, {"snapshots_offset": 16}, CorruptImage),
    ("size", {"size": 512 * MiB}, {"size": 512 * MiB + 1}, CorruptImage),
    ("size", {"size": 0}, {"size": 1 << 63}, CorruptImage),
    ("size", {"size": 0}, {"size": (1 << 64) - 1}, CorruptImage),
    ("header-length", {"header_length": 104}, {"header_length": 103}, CorruptImage),
    ("header-length", {"header_length": 65536}, {"header_length": 65537}, CorruptImage),
    ("header-length", {"header_length": 104}, {"header_length": 0}, CorruptImage),
    ("cluster-bits", {"cluster_bits": 16}, {"cluster_bits": 8}, CorruptImage),
    ("cluster-bits", {"cluster_bits": 16}, {"cluster_bits": 22}, CorruptImage),
    ("cluster-bits", {"cluster_bits": 16}, {"cluster_bits": 0}, CorruptImage),
    ("cluster-bits", {"cluster_bits": 16}, {"cluster_bits": 0xFFFFFFFF}, CorruptImage),
    ("compression", {}, {"incompatible_features": qcow2.COMPRESSION}, CorruptImage),
    (
        "raw-data-file",
        {
            "incompatible_features": qcow2.EXTERNAL_DATA,
            "autoclear_features": qcow2.RAW_EXTERNAL,
        },
        {"incompatible_features": 0},
        CorruptImage,
    ),
]


@pytest.mark.parametrize(
    ("good", "bad", "error"),
    [case[1:] for case in FIELD_LIMITS],
    ids=[f"{case[0]}-{number}" for number, case in enumerate(FIELD_LIMITS)],
)
def test_field_limits(good: dict[str, int], bad: dict[str, int], error: type[ImageError]) -> None:
    image = change(built(), **good)
    header_of(image)
    with pytest.raises(error) as caught:
        header_of(change(image, **bad))
    assert caught.value.filename == "disk.qcow2"


@pytest.mark.parametrize("bits", [9, 21])
def test_smallest_and_largest_clusters(bits: int) -> None:
    assert header_of(built(cluster_bits=bits)).geometry.cluster_size == 1 << bits


def test_extended_l2_needs_16k_clusters() -> None:
    header_of(built(cluster_bits=14, extended_l2=True))
    with pytest.raises(CorruptImage, match="16 KiB"):
        header_of(built(cluster_bits=13, header={"incompatible_features": qcow2.EXTENDED_L2}))


def test_l1_table_of_32_mib(tmp_path: Path) -> None:
    entries = 32 * MiB // 8
    path = tmp_path / "disk.qcow2"
    with path.open("wb") as file:
        file.write(change(built(), l1_size=entries, l1_table_offset=1 << 30))
        file.truncate((1 << 30) + 32 * MiB)
    disk_size = within_limits(lambda: open_disk(path).size)
    assert disk_size == MiB
    with path.open("r+b") as file:
        file.write(change(built(), l1_size=entries + 1, l1_table_offset=1 << 30))
        file.truncate((1 << 30) + 33 * MiB)
    with pytest.raises(CorruptImage, match="too large"):
        open_disk(path)


@pytest.mark.parametrize("missing", [0, 1])
def test_l1_table_must_lie_in_the_file(missing: int) -> None:
    builder = ImageBuilder(MiB, cluster_bits=9)
    builder.data(0)
    image = builder.build()
    entries = struct.unpack_from(">I", image, 36)[0]
    image += bytes(-len(image) % 512)
    image = change(image, l1_table_offset=len(image)) + bytes(entries * 8 - missing)
    if missing:
        with pytest.raises(CorruptImage, match="past the end"):
            open_disk(MemoryStorage(image))
    else:
        open_disk(MemoryStorage(image)).close()


@pytest.mark.parametrize("length", range(0, 112, 4))
def test_cut_off_header(length: int) -> None:
    image = built(compression="zstd")
    with pytest.raises(WrongFormat if length < 4 else CorruptImage) as caught:
        header_of(image[:length])
    if 4 <= length < 72:
        assert f"the file has {length} bytes" in str(caught.value)


# Backing file names


def with_name(name: bytes, offset: int, **options: Any) -> bytes:
    image = put(built(**options), offset, name)
    return change(image, backing_file_offset=offset, backing_file_size=len(name))


def test_backing_name_of_1023_bytes() -> None:
    assert header_of(with_name(b"n" * 1023, 1024)).backing_file == "n" * 1023
    with pytest.raises(CorruptImage, match="1024 bytes is too long"):
        header_of(with_name(b"n" * 1024, 1024))
    with pytest.raises(CorruptImage, match="too long"):
        header_of(change(with_name(b"n", 1024), backing_file_size=0xFFFFFFFF))


def test_backing_name_lies_in_the_first_cluster() -> None:
    assert header_of(with_name(b"base", 512 - 4, cluster_bits=9)).backing_file == "base"
    with pytest.raises(CorruptImage, match="too long"):
        header_of(with_name(b"based", 512 - 4, cluster_bits=9))
    image = change(built(cluster_bits=9), backing_file_size=0)
    assert header_of(change(image, backing_file_offset=512)).backing_file is None
    for offset in (513, 1 << 32, (1 << 64) - 1):
        with pytest.raises(CorruptImage, match="outside the first cluster"):
            header_of(change(image, backing_file_offset=offset))


def test_backing_name_past_the_end_of_the_file() -> None:
    image = change(built(), backing_file_offset=1024, backing_file_size=100)
    with pytest.raises(CorruptImage, match="past the end"):
        header_of(image[:1100])


def test_backing_name_of_any_bytes() -> None:
    name = bytes(range(1, 256))
    header = header_of(with_name(name, 1024))
    assert header.backing_file is not None
    assert header.backing_file.encode("utf-8", "surrogateescape") == name
    assert header_of(header.build().ljust(65536, b"\0")).backing_file == header.backing_file


@pytest.mark.parametrize("recorded", [b"", b"\0\0\0"])
def test_empty_backing_format_records_none(recorded: bytes) -> None:
    header = header_of(built(backing=b"base", backing_format=recorded))
    assert header.backing_file == "base"
    assert header.backing_format is None


# Extensions


def test_extension_that_just_fits() -> None:
    room = 512 - 104 - 8
    header = header_of(built(cluster_bits=9, header_length=104))
    assert header.extensions == ()
    image = put(built(cluster_bits=9), 104, struct.pack(">II", 0x12345678, room))
    assert header_of(image).extensions[0].data == image[112:512]
    for length in (room + 1, 0x7FFFFFFF, 0xFFFFFFFF):
        with pytest.raises(CorruptImage, match="longer than its space"):
            header_of(put(image, 104, struct.pack(">II", 0x12345678, length)))


@pytest.mark.parametrize("length", [4096 - 112 - 8 - 8, 4096 - 112 - 8, 5000, 65536 - 112 - 16])
def test_extensions_of_more_bytes_than_are_read_at_first(length: int) -> None:
    data = bytes(range(256)) * 256
    extensions = [(0x12345678, data[:length]), (0x12345679, b"last")]
    if length > 60000:
        extensions.pop()
    header = header_of(built(extensions=extensions))
    assert [(one.type, one.data) for one in header.extensions] == extensions


def test_a_backing_name_behind_what_is_read_at_first() -> None:
    header = header_of(built(backing=b"base", extensions=[(0x12345678, bytes(6000))]))
    assert header.backing_file == "base"
    assert len(header.extensions) == 1


def test_a_cluster_of_extensions_is_read_once() -> None:
    reads: list[int] = []

    class Counting(MemoryStorage):
        def read_at(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read_at(offset, length)

    # Nothing but extensions without data, up to the end of the largest cluster.
    image = put(built(cluster_bits=21), 104, struct.pack(">II", 0x12345678, 0) * 100_000)
    with Counting(image) as storage:
        assert len(read_header(storage).extensions) >= 100_000
    assert reads == [4096, 2 * MiB]


def test_more_of_the_first_cluster_is_paid_for() -> None:
    def opened(extensions: list[tuple[int, bytes]]) -> Header:
        storage = MemoryStorage(built(cluster_bits=21, extensions=extensions))
        storage.account = Budget(max_memory=MiB).account("disk.qcow2")
        return read_header(storage)

    assert opened([(0x12345678, b"short")]).extensions
    with pytest.raises(OverBudget, match="The header's cluster"):
        opened([(0x12345678, bytes(8192))])


def test_length_of_the_end_of_the_extensions() -> None:
    end = struct.pack(">II", 0, 512 - 104 - 8)
    assert header_of(put(built(cluster_bits=9), 104, end)).extensions == ()
    with pytest.raises(CorruptImage, match="longer than its space"):
        header_of(put(built(cluster_bits=9), 104, struct.pack(">II", 0, 512 - 104 - 7)))


def test_extensions_end_where_the_backing_name_begins() -> None:
    image = with_name(b"base", 128)
    image = put(image, 104, struct.pack(">II", 0x12345678, 16))
    assert header_of(image).extensions[0].data == image[112:128]
    with pytest.raises(CorruptImage, match="longer than its space"):
        header_of(put(image, 104, struct.pack(">II", 0x12345678, 17)))


def test_bitmaps_extension_limits() -> None:
    def image(count: int, size: int, offset: int = 1 << 16, data: bytes = b"") -> Header:
        packed = data or struct.pack(">IIQQ", count, 0, size, offset)
        return header_of(
            built(
                extensions=[(qcow2.BITMAPS_EXTENSION, packed)],
                header={"autoclear_features": qcow2.BITMAPS},
            )
        )

    found = image(65535, 65535 * 1024).bitmaps
    assert found is not None
    assert (found.number, found.directory_size) == (65535, 65535 * 1024)
    for header in (
        image(65536, 1024),
        image(0, 1024),
        image(1, 0),
        image(1, 65535 * 1024 + 1),
        image(1, 1024, offset=512),
        image(1, 1024, data=bytes(23)),
        image(1, 1024, data=bytes(25)),
    ):
        with pytest.raises(CorruptImage):
            _ = header.bitmaps


def test_bitmaps_without_their_bit_are_not_believed() -> None:
    header = header_of(built(extensions=[(qcow2.BITMAPS_EXTENSION, bytes(3))]))
    assert header.bitmaps is None


@pytest.mark.parametrize("length", [0, 15, 17])
def test_encryption_header_pointer_of_another_length(length: int) -> None:
    pointer = struct.pack(">QQ", 1 << 16, 4096).ljust(17, b"\0")[:length]
    image = built(extensions=[(qcow2.CRYPTO, pointer)], header={"crypt_method": 2})
    if length < 16:
        with pytest.raises(CorruptImage):
            header_of(image)
    else:
        assert header_of(image).luks_header == (1 << 16, 4096)


def test_unaligned_encryption_header() -> None:
    pointer = struct.pack(">QQ", (1 << 16) + 512, 4096)
    with pytest.raises(CorruptImage, match="LUKS"):
        header_of(built(extensions=[(qcow2.CRYPTO, pointer)], header={"crypt_method": 2}))


# Feature bits


@pytest.mark.parametrize("bit", [5, 6, 31, 32, 63])
def test_unknown_incompatible_bit_is_refused(bit: int) -> None:
    image = built(header={"incompatible_features": 1 << bit})
    with pytest.raises(UnsupportedFeature) as caught:
        header_of(image)
    assert caught.value.names == (f"Unknown incompatible feature: {1 << bit:x}",)


def test_unknown_incompatible_bits_are_named_from_the_table() -> None:
    table = b"".join(
        struct.pack(">BB46s", kind, bit, name)
        for kind, bit, name in [
            (0, 1, b"corrupt bit"),
            (1, 40, b"wrong type"),
            (0, 40, b"holograms"),
            (0, 41, b"n" * 46),
            (0, 42, b"\xff\xfe"),
        ]
    )
    for shortened in (table, table + b"cut off"):
        image = built(
            header={"incompatible_features": 0b1111 << 40},
            extensions=[(1, b"before"), (qcow2.FEATURE_NAMES, shortened)],
        )
        with pytest.raises(UnsupportedFeature) as caught:
            header_of(image)
        assert caught.value.names == (
            "holograms",
            "n" * 46,
            "\ufffd\ufffd",
            "Unknown incompatible feature: 80000000000",
        )


def test_unknown_compatible_and_autoclear_bits_are_kept() -> None:
    image = built(header={"compatible_features": 1 << 63, "autoclear_features": 1 << 62 | 1 << 40})
    header = header_of(image)
    assert int(header.compatible) == 1 << 63
    assert int(header.autoclear) == 1 << 62 | 1 << 40
    assert header.build() == image[: len(header.build())]
    open_disk(MemoryStorage(image)).close()


def test_dirty_and_corrupt_images_can_be_read() -> None:
    image = built(header={"incompatible_features": qcow2.DIRTY | qcow2.CORRUPT})
    header = header_of(image)
    assert header.dirty
    assert header.corrupt
    with open_disk(MemoryStorage(image)) as device:
        device.read_at(0, device.size)


@pytest.mark.parametrize("kind", [0, 1, 2, 255])
@pytest.mark.parametrize("bit", [False, True])
def test_compression_type_and_its_bit_agree(kind: int, bit: bool) -> None:
    features = {"incompatible_features": qcow2.COMPRESSION if bit else 0}
    image = put(built(header_length=112, header=features), 104, bytes([kind]))
    if kind > 1:
        with pytest.raises(UnsupportedFeature, match=f"compression type {kind}"):
            header_of(image)
    elif bool(kind) != bit:
        with pytest.raises(CorruptImage, match="compression type"):
            header_of(image)
    else:
        assert header_of(image).compression == Compression(kind)


# Built again


@pytest.mark.parametrize("length", [*range(104, 122), 200, 512, 4096])
def test_header_of_any_length_is_built_as_it_was(length: int) -> None:
    builder = ImageBuilder(
        MiB, header_length=length, backing=b"base.img", backing_format=b"raw",
        extensions=[(0x12345678, b"kept")], cluster_bits=13,
    )  # fmt: skip
    image = builder.build()
    if length > 105:
        image = put(image, 105, bytes(0x40 | number & 63 for number in range(length - 105)))
    header = header_of(image)
    again = header.build()
    assert again == image[: len(again)]
    assert header.header_length == length
    assert header.backing_file == "base.img"


@st.composite
def built_headers(draw: st.DrawFn) -> tuple[ImageBuilder, bytes]:
    """Valid images with whatever a header may hold, known or not."""
    version = draw(st.sampled_from([2, 3, 3, 3]))
    bits = draw(st.sampled_from([12, 14, 16, 21]))
    extended = version == 3 and bits >= 14 and draw(st.booleans())
    zstd = version == 3 and draw(st.booleans())
    unknown = st.tuples(
        st.integers(1, (1 << 32) - 1).filter(
            lambda kind: kind not in (qcow2.BITMAPS_EXTENSION, qcow2.CRYPTO)
        ),
        st.binary(max_size=100),
    )
    lengths = st.integers(112 if zstd else 104, 300)
    builder = ImageBuilder(
        size=draw(st.integers(0, 1 << 24)),
        version=version,
        cluster_bits=bits,
        refcount_order=draw(st.integers(0, 6)) if version == 3 else 4,
        extended_l2=extended,
        compression="zstd" if zstd else "zlib",
        header_length=draw(lengths) if version == 3 else None,
        backing=draw(st.binary(max_size=300)),
        backing_format=draw(st.none() | st.sampled_from([b"raw", b"qcow2", b"x" * 15])),
        extensions=draw(st.lists(unknown, max_size=5)),
        l1_extra=draw(st.integers(0, 20)),
    )
    features = builder.compression == "zstd" and qcow2.COMPRESSION
    builder.header = {
        "incompatible_features": (qcow2.EXTENDED_L2 if extended else 0)
        | features
        | draw(st.integers(0, 3)),
        "compatible_features": draw(st.integers(0, (1 << 64) - 1)),
        "autoclear_features": draw(st.integers(0, (1 << 64) - 1)) & ~3,
    }
    return builder, builder.build()


@given(built_headers())
@settings(max_examples=effort(200))
def test_parsed_header_is_built_as_it_was(made: tuple[ImageBuilder, bytes]) -> None:
    builder, image = made
    header = header_of(image)
    again = header.build()
    assert again == image[: builder.places["header"][1]]
    assert header.size == builder.size
    assert header.geometry.cluster_size == builder.cluster_size
    assert header.backing_file == (
        builder.backing.decode("utf-8", "surrogateescape") if builder.backing else None
    )
    kept = [(extension.type, extension.data) for extension in header.extensions]
    named = (
        [] if builder.backing_format is None else [(qcow2.BACKING_FORMAT, builder.backing_format)]
    )
    assert kept == named + builder.extensions


@given(built_headers(), st.data())
@settings(max_examples=effort(100))
def test_changed_header_is_read_as_changed(
    made: tuple[ImageBuilder, bytes], data: st.DataObject
) -> None:
    header = header_of(made[1])
    changed = header._replace(
        size=data.draw(st.integers(0, header.size)),
        backing_file=data.draw(st.none() | st.text(min_size=1, max_size=50).filter(_encodes)),
    ).with_extension(ExtensionType.BACKING_FORMAT, b"vmdk")
    again = header_of(changed.build().ljust(len(made[1]), b"\0"))
    assert again == changed
    without = again.with_extension(ExtensionType.BACKING_FORMAT, None)
    assert without.backing_format is None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True


def test_header_that_does_not_fit_its_cluster() -> None:
    header = header_of(built(cluster_bits=9))
    room = 512 - 104 - 8
    assert len(header._replace(backing_file="n" * room).build()) == 512
    with pytest.raises(ImageError, match="larger cluster_size"):
        header._replace(backing_file="n" * (room + 1)).build()


def test_reading_a_header_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(built()[:200])
    with FileStorage.open(path) as storage:
        assert read_header(storage).size == MiB


# Any values at all


@given(st.data())
@settings(max_examples=effort(500))
def test_any_field_with_any_value(data: st.DataObject) -> None:
    image = built(cluster_bits=data.draw(st.sampled_from([9, 12])), size=64 * KiB)
    places = {**fields(schema.HEADER_V2), **fields(schema.HEADER_V3, 72)}
    for name in data.draw(st.lists(st.sampled_from(sorted(places)), min_size=1, max_size=3)):
        offset, length = places[name]
        value = data.draw(integers_near_powers(8 * length))
        image = put(image, offset, value.to_bytes(length, "big"))
    try:
        with open_disk(MemoryStorage(image), "qcow2", follow=False) as device:
            assert 0 <= device.size < 1 << 63
    except ImageError:
        pass


def integers_near_powers(bits: int) -> st.SearchStrategy[int]:
    """Integers of so many bits, often next to a power of two."""
    top = (1 << bits) - 1
    near = st.integers(0, bits).flatmap(
        lambda bit: st.integers(max(0, (1 << bit) - 2), min(top, (1 << bit) + 2))
    )
    return near | st.integers(0, top)
