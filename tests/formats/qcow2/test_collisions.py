"""Images whose metadata lies upon other metadata: read, repaired, but not written to."""

from __future__ import annotations

import struct

import pytest

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import patch, put
from tests.kit.disks import open_disk
from tests.kit.qcow2 import BITMAPS, BITMAPS_EXTENSION, COPIED, CRYPTO, ImageBuilder

#: Where each piece of metadata is named: as which field of the header, or in which table.
_NAMED_BY = {
    "l2-0": "l1",
    "refcount-block-0": "refcount-table",
    "l1": "l1_table_offset",
    "refcount-table": "refcount_table_offset",
    "snapshots": "snapshots_offset",
}


def built() -> tuple[ImageBuilder, bytes]:
    builder = ImageBuilder(3 << 20, cluster_bits=12)
    builder.data(0)
    builder.data(600)
    builder.snapshot(b"1", b"one")
    return builder, builder.build()


def named_at(builder: ImageBuilder, image: bytes, what: str, offset: int) -> bytes:
    """The image with a piece of its metadata said to lie at another ``offset``."""
    by = _NAMED_BY[what]
    if by in builder.places:
        return put(
            image, builder.places[by][0], struct.pack(">Q", offset | (what == "l2-0") * COPIED)
        )
    return patch(image, schema.HEADER_V2, **{by: offset})


def test_sound_images_are_written_to() -> None:
    _, image = built()
    with open_disk(MemoryStorage(image), "qcow2", writable=True) as disk:
        disk.write_at(0, b"new")


@pytest.mark.parametrize("what", _NAMED_BY)
@pytest.mark.parametrize("upon", [*_NAMED_BY, "header", "0:l1"])
def test_metadata_upon_metadata(what: str, upon: str) -> None:
    builder, image = built()
    offset = 0 if upon == "header" else builder.places[upon][0]
    # An L2 table that becomes the L1 table is no L2 table any more.
    if (
        what == upon
        or (what, upon) == ("l1", "l2-0")
        or (offset == 0 and _NAMED_BY[what] in builder.places)
    ):
        return
    with pytest.raises(CorruptImage, match=r"upon other metadata|past the end|snapshot table"):
        open_disk(MemoryStorage(named_at(builder, image, what, offset)), "qcow2", writable=True)


def test_two_entries_that_name_one_l2_table() -> None:
    builder, image = built()
    l1, table = builder.places["l1"][0], builder.places["l2-0"][0]
    image = put(image, l1 + 8, struct.pack(">Q", COPIED | table))
    with pytest.raises(CorruptImage, match="upon other metadata") as caught:
        open_disk(MemoryStorage(image), "qcow2", writable=True)
    assert caught.value.offset == table
    storage = MemoryStorage(image)
    with open_disk(MemoryStorage(image), "qcow2") as disk:
        before = disk.read_at(0, disk.size)
    repair(storage, "all")
    with open_disk(MemoryStorage(storage.getvalue()), "qcow2", writable=True) as disk:
        assert disk.read_at(0, disk.size) == before
        disk.write_at(0, b"new")
        assert disk.read_at(0, disk.size) == b"new" + before[3:]


def test_luks_headers_and_bitmap_directories_count() -> None:
    builder, image = built()
    table = builder.places["refcount-table"][0]
    luks = (CRYPTO, struct.pack(">QQ", table, 592))
    bitmaps = (BITMAPS_EXTENSION, struct.pack(">IIQQ", 1, 0, 32, table))
    for extension, header in ((luks, {}), (bitmaps, {"autoclear_features": BITMAPS})):
        builder = ImageBuilder(3 << 20, cluster_bits=12, extensions=[extension], header=header)
        builder.data(0)
        image = builder.build()
        # Where the directory is said to be, there is one bitmap.
        entry = struct.pack(">QIIBBHI", 0, 0, 2, 1, 16, 1, 0) + b"n"
        image = put(image, table, entry.ljust(32, b"\0"))
        image = patch(image, schema.HEADER_V2, refcount_table_offset=table)
        with pytest.raises(CorruptImage):
            open_disk(MemoryStorage(image), "qcow2", writable=True)


@pytest.mark.parametrize("entries", [2000, (1 << 32) - 1])
def test_a_snapshot_whose_l1_table_ends_past_the_file(entries: int) -> None:
    """No memory is taken for where it claims to lie."""
    builder, image = built()
    place = builder.places["snapshots"][0]
    last = len(image) - 4096
    image = patch(image, schema.SNAPSHOT_HEAD, place, l1_size=entries, l1_table_offset=last)
    with pytest.raises(CorruptImage, match="past the end of the file"):
        open_disk(MemoryStorage(image), "qcow2", writable=True)
