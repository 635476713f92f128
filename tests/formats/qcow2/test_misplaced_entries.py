"""L2 entries that lead onto metadata: it stays, whatever becomes of the entry."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool.device import BlockDevice
from imgtool.formats.qcow2.schema import COMPRESSED, COPIED, L1_OFFSET_MASK, ZERO_FLAG

KiB, MiB = 1 << 10, 1 << 20
CLUSTER = 64 * KiB

ENTRIES = {
    "compressed": COMPRESSED,
    "plain": 0,
    "copied": COPIED,
    "zeros": COPIED | ZERO_FLAG,
    "shared zeros": ZERO_FLAG,
}

CHANGES: dict[str, Callable[[BlockDevice], None]] = {
    "write": lambda disk: disk.write_at(CLUSTER, b"new" * CLUSTER),
    "write a part": lambda disk: disk.write_at(CLUSTER, bytes(512)),
    "zeros": lambda disk: disk.write_zeroes(CLUSTER, CLUSTER, unmap=False),
    "unmapped zeros": lambda disk: disk.write_zeroes(CLUSTER, CLUSTER),
    "discard": lambda disk: disk.discard(CLUSTER, CLUSTER),
    "shrink": lambda disk: disk.resize(CLUSTER),
    "make empty": lambda disk: disk.make_empty(),
    "delete a snapshot": lambda disk: disk.delete_snapshot("one"),
    "apply a snapshot": lambda disk: disk.apply_snapshot("one"),
}


def _metadata(path: Path) -> dict[str, int]:
    image = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", image, 40)
    (refcount_table,) = struct.unpack_from(">Q", image, 48)
    (snapshots,) = struct.unpack_from(">Q", image, 64)
    (l2,) = struct.unpack_from(">Q", image, l1)
    (refcount_block,) = struct.unpack_from(">Q", image, refcount_table)
    found = {"header": 0, "L1": l1, "L2": l2 & L1_OFFSET_MASK, "refcount table": refcount_table}
    found |= {"refcount block": refcount_block}
    return found | ({"snapshot table": snapshots} if snapshots else {})


def _same_disk(path: Path, before: bytes) -> None:
    with imgtool.open(path) as disk:
        assert disk.read_at(0, len(before)) == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_metadata_stays(tmp_path: Path, entry: str, change: str) -> None:
    sound, path = tmp_path / "sound.qcow2", tmp_path / "x.qcow2"
    imgtool.create(sound, 16 * MiB)
    with imgtool.open(sound, writable=True) as disk:
        disk.write_at(0, b"kept" * (CLUSTER // 4))
    if "snapshot" in change:
        imgtool.create_snapshot(sound, "one")
    for offset in _metadata(sound).values():
        image = bytearray(sound.read_bytes())
        struct.pack_into(">Q", image, _metadata(sound)["L2"] + 8, ENTRIES[entry] | offset)
        path.write_bytes(image)
        try:
            with imgtool.open(path, writable=True) as disk:
                CHANGES[change](disk)
                disk.flush()
                # What has become free is taken first.
                disk.write_at(2 * MiB, b"more" * (CLUSTER // 2))
        except imgtool.ImageError:
            pass  # to refuse is as good
        if change == "make empty":
            assert imgtool.info(path).virtual_size == 16 * MiB
        else:
            _same_disk(path, b"kept" * (CLUSTER // 4))


def test_a_missing_refcount_block_is_not_made_over_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    imgtool.create(path, 16 * MiB)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"kept" * (CLUSTER // 4))
    image = bytearray(path.read_bytes())
    struct.pack_into(">Q", image, _metadata(path)["refcount table"], 0)
    path.write_bytes(image)
    with (
        pytest.raises(imgtool.CorruptImage, match="counted as free"),
        imgtool.open(path, writable=True) as disk,
    ):
        disk.write_at(MiB, b"new")
    _same_disk(path, b"kept" * (CLUSTER // 4))
    imgtool.check(path, repair="all")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(MiB, b"new")
    _same_disk(path, b"kept" * (CLUSTER // 4))


def test_metadata_that_is_counted_as_free_is_not_cut_off(tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, MiB)
    imgtool.create(path, backing_file=base.name, backing_format="qcow2")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"kept" * (CLUSTER // 4))
    imgtool.create_snapshot(path, "one")
    places = _metadata(path)
    image = bytearray(path.read_bytes())
    struct.pack_into(
        ">H", image, places["refcount block"] + places["snapshot table"] // CLUSTER * 2, 0
    )
    path.write_bytes(image)
    with imgtool.open(path, writable=True) as disk:
        disk.make_empty()
    assert [found.name for found in imgtool.snapshots(path)] == ["one"]
