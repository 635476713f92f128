"""Memory: everything that an image makes us keep is charged, and goes back."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool import Budget, OverBudget
from imgtool.errors import ImageError
from imgtool.formats.qcow2.driver import Qcow2Device
from tests.budget.calls import CALLS, WRITING, KiB, MiB, plain
from tests.kit import qcow2
from tests.kit.corrupt import put
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import bitmap_entry, change, snapshot_entry


@pytest.mark.parametrize("name", CALLS)
def test_memory(tmp_path: Path, name: str) -> None:
    """The least that does is found, and all of it comes back, whether it was enough or not."""
    path = plain(tmp_path / "disk.qcow2")
    low, high = 0, MiB
    while low + KiB < high:
        middle = (low + high) // 2
        budget = Budget(max_memory=middle)
        try:
            CALLS[name](path, budget)
            high = middle
        except OverBudget:
            low = middle
        gc.collect()
        assert budget.taken == 0
    assert 64 * KiB < high < 512 * KiB


@pytest.mark.parametrize("name", WRITING)
def test_memory_of_what_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.qcow2"
    low, high = 0, 2 * MiB
    while low + KiB < high:
        middle = (low + high) // 2
        budget = Budget(max_memory=middle)
        try:
            WRITING[name](plain(path), budget)
            high = middle
        except OverBudget:
            low = middle
        gc.collect()
        assert budget.taken == 0
        assert not imgtool.check(path).corruptions
    assert 64 * KiB < high < MiB


def test_a_chain_shares_one_budget(tmp_path: Path) -> None:
    """Each image is small, and many are not."""
    names = [b"", *(f"{number}.qcow2".encode() for number in range(20))]
    for number, name in enumerate(names):
        builder = ImageBuilder(MiB, backing=name, backing_format=b"qcow2" if name else None)
        (tmp_path / f"{number}.qcow2").write_bytes(builder.build())
    budget = Budget(max_memory=2 * MiB)
    with imgtool.open(tmp_path / "5.qcow2", budget=budget):
        assert 0 < budget.taken < 2 * MiB
    with pytest.raises(OverBudget) as caught:
        imgtool.open(tmp_path / "20.qcow2", budget=budget)
    # The one that found nothing left is named, and those above it could not be opened for it.
    assert caught.value.filename != caught.value.opening[-1]
    assert budget.taken == 0


def test_caches_share_what_there_is(tmp_path: Path) -> None:
    """An L2 cache takes no more than its disk can use, and a quarter of what is left."""
    large = tmp_path / "large.qcow2"
    imgtool.create(large, 1 << 40)
    budget = Budget(max_memory=40 * MiB)
    opened = []
    for _ in range(12):
        opened.append(imgtool.open(large, budget=budget))
    assert budget.taken < 40 * MiB
    for device in opened:
        assert device.read_at(0, 512) == bytes(512)
        device.close()
    assert budget.taken == 0
    with imgtool.open(plain(tmp_path / "small.qcow2"), budget=budget):
        assert budget.taken < 256 * KiB


# Each structure


def l1_of_8_mib(path: Path) -> None:
    plain(path)
    with path.open("r+b") as file:
        file.write(change(path.read_bytes(), l1_size=MiB, l1_table_offset=16 * MiB))
        file.truncate(24 * MiB)


def refcount_table_of_8_mib(path: Path) -> None:
    plain(path)
    with path.open("r+b") as file:
        file.write(
            change(path.read_bytes(), refcount_table_clusters=128, refcount_table_offset=16 * MiB)
        )
        file.truncate(24 * MiB)


def many_snapshots(path: Path) -> None:
    entry = snapshot_entry(4, 4, 100)
    image = change(plain(path).read_bytes(), nb_snapshots=2000, snapshots_offset=MiB)
    path.write_bytes(image.ljust(MiB, b"\0") + entry * 2000)


def many_bitmaps(path: Path) -> None:
    builder = ImageBuilder(MiB, header={"autoclear_features": 1})
    directory = bitmap_entry(b"n" * 999) * 1000
    where = builder.place(directory, "directory")
    packed = struct.pack(">IIQQ", 1000, 0, len(directory), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    path.write_bytes(builder.build())


def large_bitmap(path: Path) -> None:
    builder = ImageBuilder(2 * MiB * 4096, header={"autoclear_features": 1})
    table = builder.place(bytes(8 * 32), "table")
    entry = bitmap_entry(b"b", bits=9, table=table, entries=32)
    where = builder.place(entry, "directory")
    packed = struct.pack(">IIQQ", 1, 0, len(entry), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    path.write_bytes(builder.build())


def long_extension(path: Path) -> None:
    plain(path, cluster_bits=21, extensions=[(0x12345678, bytes(MiB))])


def feature_names(path: Path) -> None:
    table = bytes(48) * 20_000
    extensions = [(qcow2.FEATURE_NAMES, table)]
    plain(path, cluster_bits=20, extensions=extensions, header={"incompatible_features": 1 << 60})


def many_references(path: Path) -> None:
    """A file of 8 TiB that has next to nothing stored, and an L2 table that names all of it."""
    builder = ImageBuilder(262144 << 21, cluster_bits=21)
    builder.entry(0, 1 << 21)
    image = builder.build()
    entries = struct.pack(">262144Q", *((1 + number) << 21 for number in range(262144)))
    path.write_bytes(put(image, builder.places["l2-0"][0], entries))
    os.truncate(path, 8 << 40)


def bitmaps_of(path: Path, budget: Budget) -> None:
    with imgtool.open(path, budget=budget) as device:
        assert isinstance(device, Qcow2Device)
        assert device.bitmaps


STRUCTURES: list[tuple[Callable[[Path], None], Callable[[Path, Budget], object], str]] = [
    (l1_of_8_mib, CALLS["open"], "The L1 table"),
    (l1_of_8_mib, CALLS["info"], "The L1 table"),
    (
        refcount_table_of_8_mib,
        lambda path, budget: imgtool.open(path, writable=True, budget=budget).close(),
        "The refcount table",
    ),
    (many_snapshots, CALLS["snapshots"], "The snapshot table"),
    (many_snapshots, CALLS["info"], "The snapshot table"),
    (many_bitmaps, bitmaps_of, "The bitmap directory"),
    (
        large_bitmap,
        lambda path, budget: list(imgtool.dirty_ranges(path, "b", budget=budget)),
        "The bitmap 'b'",
    ),
    (long_extension, CALLS["open"], "The header's"),
]


@pytest.mark.parametrize(
    ("make", "use", "what"), STRUCTURES, ids=lambda value: getattr(value, "__name__", None)
)
def test_structures_are_charged(
    tmp_path: Path,
    make: Callable[[Path], None],
    use: Callable[[Path, Budget], object],
    what: str,
) -> None:
    path = tmp_path / "disk.qcow2"
    make(path)
    use(path, Budget())
    with pytest.raises(OverBudget) as caught:
        use(path, Budget(max_memory=MiB))
    assert caught.value.what.startswith(what)
    assert caught.value.filename == str(path)


def test_feature_names_are_charged(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    feature_names(path)
    with pytest.raises(ImageError, match="Unknown incompatible feature"):
        imgtool.info(path)
    with pytest.raises(OverBudget, match="feature name table"):
        imgtool.info(path, budget=Budget(max_memory=3 * MiB))


def test_what_a_check_counts_is_charged(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    many_references(path)
    assert imgtool.check(path).corruptions
    with pytest.raises(OverBudget, match="Counting references"):
        imgtool.check(path, budget=Budget(max_memory=12 * MiB))


def test_a_check_counts_what_is_referred_to_where_every_cluster_is_too_much(
    tmp_path: Path,
) -> None:
    path = plain(tmp_path / "disk.qcow2", cluster_bits=9, size=64 * KiB)
    os.truncate(path, 512 * MiB)
    assert imgtool.check(path, budget=Budget(max_memory=MiB)).corruptions == 0
