"""Feature bits: refused, named, kept."""

from __future__ import annotations

import struct

import pytest

from imgtool.errors import CorruptImage, UnsupportedFeature
from imgtool.formats.qcow2.schema import Compression
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.header.images import built, header_of
from tests.kit import qcow2
from tests.kit.corrupt import put
from tests.kit.disks import open_disk


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
