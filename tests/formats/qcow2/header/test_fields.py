"""The fields of the header: their limits, one by one, and any values at all."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.errors import CorruptImage, ImageError, UnsupportedFeature, WrongFormat
from imgtool.formats.qcow2 import schema
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.header.images import KiB, MiB, built, header_of
from tests.kit import qcow2
from tests.kit.corrupt import fields, put
from tests.kit.disks import open_disk
from tests.kit.effort import effort
from tests.kit.limits import within_limits
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import change

#: Each case is accepted as it is first given, and refused as it is then given.
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
