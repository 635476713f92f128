"""Images that are small and claim to be enormous, or lead in circles: everything comes to an end.

Each is described, checked, mapped and read in a process that may take 256 MiB more than it has, and
must be open within two seconds of the processor's time. What is not bounded by what a file holds is
bounded by steps of work; docs/safety.md has the argument, and what the worst of these takes.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy  # noqa: F401  (its own memory is no image's fault)
import pytest

import imgtool
from imgtool.errors import CorruptImage, ImageError, OverBudget
from imgtool.formats.qcow2 import schema
from tests.kit.corrupt import patch, put
from tests.kit.limits import MEMORY, SECONDS, MiB, measure
from tests.kit.qcow2 import COPIED, ImageBuilder
from tests.kit.qcow2_parts import change, snapshot_entry

GiB, TiB = 1 << 30, 1 << 40

#: Seconds of the processor's time that everything else may take.
_PATIENCE = 20


class Outcome(NamedTuple):
    """What came of each question, an error by its name, and the seconds that opening took."""

    opened: str
    described: str
    checked: str
    mapped: str
    read: str
    seconds: float


def ask(path: Path, *, extents: int | None = None, ceiling: int = MEMORY) -> Outcome:
    """Put every question to an image; of its map, so many extents are looked at, or all.

    ``ceiling`` is of the address space, of which some is free, and lies between what is used.
    """

    def outcome(question: Callable[[], object]) -> str:
        try:
            question()
        except ImageError as error:
            return type(error).__name__ if str(error).isprintable() else str(error)
        return ""

    def read() -> None:
        with imgtool.open(path) as device:
            length = min(device.size, MiB)
            device.read_at(0, length)
            device.read_at(device.size - length, length)

    def mapped() -> None:
        position = 0
        for extent in itertools.islice(imgtool.map(path), extents):
            assert extent.offset == position
            position = extent.end

    def work() -> Outcome:
        opened, cost = measure(lambda: outcome(lambda: imgtool.open(path).close()), ceiling=MEMORY)
        return Outcome(
            opened,
            outcome(lambda: imgtool.info(path)),
            outcome(lambda: imgtool.check(path)),
            outcome(mapped),
            outcome(read),
            cost.seconds,
        )

    found, cost = measure(work, ceiling=ceiling)
    assert cost.memory <= MEMORY
    assert cost.seconds <= _PATIENCE
    assert found.seconds <= SECONDS
    return found


def sound(found: Outcome) -> bool:
    return not any(found[:5])


def write(path: Path, image: bytes, length: int = 0) -> Path:
    """Write an image into a file of so many bytes, of which only the image is stored."""
    path.write_bytes(image)
    os.truncate(path, max(length, len(image)))
    return path


def with_l1(image: bytes, path: Path, entries: list[int], where: int, length: int = 0) -> Path:
    """Write an image whose L1 table lies at ``where``."""
    write(path, image, length)
    with path.open("r+b") as file:
        file.seek(where)
        file.write(struct.pack(f">{len(entries)}Q", *entries))
    return path


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 512, 1 << 60, 1 << 63])
def test_claims_an_enormous_disk_in_4_kib(tmp_path: Path, size: int) -> None:
    image = change(ImageBuilder(4096, cluster_bits=9).build(), size=size)
    found = ask(write(tmp_path / "x.qcow2", image.ljust(4096, b"\0")[:4096]))
    assert set(found[:5]) == {"CorruptImage"}


def test_two_mib_clusters_in_512_bytes(tmp_path: Path) -> None:
    """A header, and nothing that it names."""
    header = ImageBuilder(0, cluster_bits=21).build()[:512]
    path = write(tmp_path / "x.qcow2", header)
    found = ask(path)
    assert not any((found.opened, found.described, found.mapped, found.read))
    for entries in (1, 1 << 22):
        write(path, change(header, l1_size=entries, l1_table_offset=1 << 21))
        assert ask(path).opened == "CorruptImage"


def test_every_field_of_a_512_byte_file_at_its_largest(tmp_path: Path) -> None:
    header = ImageBuilder(0, cluster_bits=21).build()[:512]
    for name in (
        "backing_file_offset", "backing_file_size", "size", "l1_size", "l1_table_offset",
        "refcount_table_offset", "refcount_table_clusters", "nb_snapshots", "snapshots_offset",
    ):  # fmt: skip
        width = 4 if name in ("backing_file_size", "l1_size", "refcount_table_clusters",
                              "nb_snapshots") else 8  # fmt: skip
        largest = (1 << 8 * width) - 1
        ask(write(tmp_path / "x.qcow2", change(header, **{name: largest})))


def test_l2_table_that_is_its_own_data(tmp_path: Path) -> None:
    """What a guest reads there is the table: a circle that nobody goes round."""
    builder = ImageBuilder(1 << 39, cluster_bits=21)
    builder.data(0)
    image = builder.build()
    table = builder.places["l2-0"][0]
    entry = struct.pack(">Q", COPIED | table)
    path = write(tmp_path / "x.qcow2", put(image, table, entry * (1 << 18)))
    found = ask(path)
    assert sound(found)
    with imgtool.open(path) as device:
        assert device.read_at(0, 64) == entry * 8
    assert imgtool.check(path).corruptions


def test_l1_table_that_is_its_own_l2_table(tmp_path: Path) -> None:
    builder = ImageBuilder(64 << 16)
    builder.data(0)
    image = builder.build()
    table = builder.places["l1"][0]
    image = put(image, table, struct.pack(">Q", COPIED | table))
    assert sound(ask(write(tmp_path / "x.qcow2", image)))


def test_refcount_table_that_names_itself(tmp_path: Path) -> None:
    builder = ImageBuilder(MiB)
    builder.data(0)
    image = builder.build()
    table = builder.places["refcount-table"][0]
    entry = table.to_bytes(8, "big")
    path = write(tmp_path / "x.qcow2", put(image, table, entry * 8192))
    assert sound(ask(path))
    assert not imgtool.check(path).clean
    # Were the table its own block, each cluster that is taken would change where blocks are.
    with pytest.raises(CorruptImage, match="upon other metadata"):
        imgtool.open(path, writable=True)


def test_refcount_blocks_that_name_each_other(tmp_path: Path) -> None:
    """Eight million bytes of refcount table, of which each entry names one block again."""
    builder = ImageBuilder(MiB, cluster_bits=9)
    builder.data(0)
    image = builder.build()
    block = builder.places["refcount-block-0"][0]
    where = MiB
    image = change(image, refcount_table_offset=where, refcount_table_clusters=8 * MiB // 512)
    path = write(tmp_path / "x.qcow2", put(image, where, block.to_bytes(8, "big") * MiB))
    assert not ask(path).opened


def test_sparse_file_of_8_tib_with_tables_that_look_full(tmp_path: Path) -> None:
    """Each L1 entry names an L2 table of its own, none of which was ever written."""
    count = 1 << 16
    builder = ImageBuilder(1 << 39, cluster_bits=21)
    image = change(builder.build(), size=count << 39, l1_size=count, l1_table_offset=8 * MiB)
    entries = [COPIED | (16 * MiB + (number << 21)) for number in range(count)]
    path = with_l1(image, tmp_path / "x.qcow2", entries, 8 * MiB, 8 * TiB)
    assert path.stat().st_blocks * 512 < 16 * MiB
    assert sound(ask(path))
    assert [extent.length for extent in imgtool.map(path)] == [count << 39]


def test_sparse_file_with_an_l1_table_of_32_mib(tmp_path: Path) -> None:
    image = change(ImageBuilder(1 << 29).build(), l1_size=4 * MiB, l1_table_offset=1 << 22)
    image = change(image, size=(4 * MiB) << 29)
    path = write(tmp_path / "x.qcow2", image, 8 * TiB)
    assert sound(ask(path))


MANY = 4 * MiB
_L1_AT = 64 * MiB
_TABLES_AT = 1 << 30

#: In which order the L2 tables of so many L1 entries lie, the entries by number.
ORDERS: dict[str, Callable[[int, int], int]] = {
    "one after the other": lambda number, count: number,
    "in no order": lambda number, count: number * 2654435761 % count,
    "all the same": lambda number, count: 0,
}


def sparse_monster(path: Path, bits: int, order: str, count: int = MANY) -> Path:
    """An image that names millions of tables, all of which lie in a hole of a long file."""
    coverage = 1 << (2 * bits - 3)
    image = ImageBuilder(coverage, cluster_bits=bits).build()
    image = change(image, size=count * coverage, l1_size=count, l1_table_offset=_L1_AT)
    write(path, image, _TABLES_AT + (count << bits))
    place, step = ORDERS[order], 1 << 16
    with path.open("r+b") as file:
        file.seek(_L1_AT)
        # Not all at once: what this process has freed shapes the memory of those it forks.
        for start in range(0, count, step):
            places = (place(number, count) << bits for number in range(start, start + step))
            file.write(struct.pack(f">{step}Q", *(COPIED | (_TABLES_AT + at) for at in places)))
    return path


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [9, 16])
def test_millions_of_tables_in_a_hole(tmp_path: Path, bits: int, order: str) -> None:
    """They are passed over together: it took a minute to ask for each, and more to read them."""
    path = sparse_monster(tmp_path / "x.qcow2", bits, order)
    found = ask(path, ceiling=2 * MEMORY)
    assert not any((found.opened, found.described, found.mapped, found.read))
    # Four million references are more than a check may remember.
    assert found.checked in ("", "OverBudget")
    [extent], cost = measure(lambda: list(imgtool.map(path)), ceiling=MEMORY)
    assert extent.kind is imgtool.Kind.UNALLOCATED
    assert cost.seconds <= 5
    for work in (
        lambda: imgtool.measure(path, format="qcow2", cluster_size="2M").required,
        lambda: imgtool.compare(path, path).identical,
        lambda: imgtool.convert(path, tmp_path / "out.qcow2", format="qcow2", cluster_size="2M"),
    ):
        begun = time.process_time()
        work()
        assert time.process_time() - begun <= 10
    budget = imgtool.Budget(max_work=10_000)
    assert list(imgtool.map(path, budget=budget)) == [extent]


def test_millions_of_names_for_a_table_without_entries(tmp_path: Path) -> None:
    builder = ImageBuilder(1 << 29)
    builder.data(0)
    image = builder.build()
    table = builder.places["l2-0"][0]
    image = put(image, table, bytes(1 << 16))
    image = change(image, size=MANY << 29, l1_size=MANY, l1_table_offset=_L1_AT)
    path = with_l1(image, tmp_path / "x.qcow2", [COPIED | table] * MANY, _L1_AT)
    assert sound(ask(path, ceiling=2 * MEMORY))
    extents, cost = measure(lambda: list(imgtool.map(path)), ceiling=MEMORY)
    assert [extent.length for extent in extents] == [MANY << 29]
    assert cost.seconds <= 10


def test_writing_to_an_image_whose_tables_lie_in_a_hole(tmp_path: Path) -> None:
    """Sound in all respects once it has been repaired, and each operation goes by its holes."""
    path = sparse_monster(tmp_path / "x.qcow2", 12, "in no order", MiB // 4)
    budget = imgtool.Budget(max_memory=512 * MiB)

    def work() -> list[object]:
        return [
            imgtool.check(path, repair="all", budget=budget).clean,
            imgtool.create_snapshot(path, "s"),
            imgtool.apply_snapshot(path, "s"),
            imgtool.delete_snapshot(path, "s"),
            imgtool.check(path).clean,
            imgtool.compact(path, budget=budget).after.stored < 64 * MiB,
            imgtool.check(path).clean,
        ]

    done, cost = measure(work, ceiling=4 * MEMORY)
    assert done == [True, None, None, None, True, True, True]
    assert cost.memory <= MEMORY
    assert cost.seconds <= 60


def test_a_refcount_table_of_a_million_blocks_in_a_hole(tmp_path: Path) -> None:
    image = ImageBuilder(1 << 29).build()
    image = change(image, refcount_table_offset=_L1_AT, refcount_table_clusters=128)
    entries = range(_TABLES_AT, _TABLES_AT + (MiB << 16), 1 << 16)
    path = write(tmp_path / "x.qcow2", image, _TABLES_AT + (MiB << 16))
    with path.open("r+b") as file:
        file.seek(_L1_AT)
        file.write(struct.pack(f">{MiB}Q", *entries))
    assert sound(ask(path))


@pytest.mark.parametrize("kind", ["data", "compressed", "every other"])
def test_one_table_named_by_millions_is_bounded_by_steps_of_work(tmp_path: Path, kind: str) -> None:
    """The disk is as large as it says, and a map of it as long. Each service has its own patience.

    A step takes less than ten microseconds on any machine, so a million of them end.
    """
    builder = ImageBuilder(1 << 29)
    for index in range(8192):
        entry = {"data": COPIED | 4 << 16, "compressed": 1 << 62 | 4 << 16}.get(kind, 0)
        builder.entry(index, entry or (COPIED | 4 << 16) * (index % 2))
    image = builder.build()
    table = builder.places["l2-0"][0]
    image = change(image, size=MANY << 29, l1_size=MANY, l1_table_offset=_L1_AT)
    path = with_l1(image, tmp_path / "x.qcow2", [COPIED | table] * MANY, _L1_AT)
    calls: list[Callable[[imgtool.Budget], object]] = [
        lambda budget: sum(1 for _ in imgtool.map(path, budget=budget)),
        lambda budget: imgtool.measure(path, format="qcow2", cluster_size="2M", budget=budget),
        lambda budget: imgtool.compare(path, path, strict=True, budget=budget),
    ]
    for call in calls:
        begun = time.process_time()
        with pytest.raises(OverBudget, match="Walking through its tables"):
            call(imgtool.Budget(max_work=MiB))
        assert time.process_time() - begun <= 20
    # A check walks each table once, however often it is named.
    report, cost = measure(lambda: imgtool.check(path), ceiling=2 * MEMORY)
    assert report.corruptions
    assert cost.memory <= MEMORY
    assert cost.seconds <= _PATIENCE


def test_one_l2_table_for_a_whole_disk_of_2_pib(tmp_path: Path) -> None:
    """A map has as many extents as the disk is large: work that ``max_virtual_size`` bounds."""
    builder = ImageBuilder(1 << 29)
    for index in range(0, 8192, 2):
        builder.entry(index, 1 << 16)
    image = builder.build()
    table = builder.places["l2-0"][0]
    count = 4 * MiB
    image = change(image, size=count << 29, l1_size=count, l1_table_offset=1 << 22)
    path = with_l1(image, tmp_path / "x.qcow2", [COPIED | table] * count, 1 << 22)
    assert sound(ask(path, extents=100_000))
    with pytest.raises(OverBudget):
        imgtool.open(path, budget=imgtool.Budget(max_virtual_size=1 << 40))


def test_65536_snapshots_with_an_l1_table_of_32_mib_each(tmp_path: Path) -> None:
    """All of them the same one: it is walked once."""
    image = ImageBuilder(1 << 29).build()
    entry = patch(
        snapshot_entry(4, 4, 16), schema.SNAPSHOT_HEAD, l1_table_offset=1 << 26, l1_size=4 * MiB
    )
    count = 4096
    image = change(image, nb_snapshots=count, snapshots_offset=1 << 24)
    path = write(tmp_path / "x.qcow2", put(image, 1 << 24, entry * count), 1 << 27)
    assert sound(ask(path))


def test_header_that_claims_all_of_the_file_for_its_tables(tmp_path: Path) -> None:
    """Whoever writes keeps off what holds metadata, and remembers it as ranges."""
    builder = ImageBuilder(MiB)
    builder.data(0)
    pointer = struct.pack(">QQ", 1 << 16, (1 << 63) - 1)
    builder.extensions = [(0x0537BE77, pointer)]
    path = write(tmp_path / "x.qcow2", builder.build())

    def work() -> str:
        try:
            with imgtool.open(path, writable=True) as device:
                device.write_at(MiB // 2, b"x")
        except ImageError as error:
            return str(error)
        return ""

    told, cost = measure(work, ceiling=MEMORY)
    assert "metadata" in told
    assert cost.memory < 64 * MiB
    with imgtool.open(path) as device:
        assert device.read_at(MiB // 2, 1) == b"\0"


def test_writing_with_an_l1_table_of_32_mib(tmp_path: Path) -> None:
    builder = ImageBuilder(1 << 29)
    builder.data(0)
    count = 4 * MiB
    image = change(builder.build(), size=count << 29, l1_size=count, l1_table_offset=1 << 26)
    entries = [COPIED | (1 << 30) + (number << 16) for number in range(count)]
    path = with_l1(image, tmp_path / "x.qcow2", entries, 1 << 26, TiB)

    def work() -> None:
        with imgtool.open(path, writable=True) as device:
            assert not device.read_only

    _, cost = measure(work, ceiling=2 * MEMORY)
    assert cost.memory <= MEMORY


def test_chain_of_images_with_l1_tables_of_32_mib(tmp_path: Path) -> None:
    """Any of them would do; together they are refused before memory runs out."""
    for number in range(64):
        name = f"{number - 1}.qcow2".encode() if number else b""
        builder = ImageBuilder(1 << 29, backing=name, backing_format=b"qcow2" if name else None)
        image = change(builder.build(), l1_size=4 * MiB, l1_table_offset=1 << 22)
        write(tmp_path / f"{number}.qcow2", image, 64 * MiB)
    found = ask(tmp_path / "63.qcow2")
    assert found.opened == found.mapped == found.read == "OverBudget"
    assert not found.described
    assert sound(ask(tmp_path / "1.qcow2"))


def test_compressed_cluster_that_is_the_whole_file(tmp_path: Path) -> None:
    """Every cluster of the disk is decompressed out of the same two megabytes of anything."""
    builder = ImageBuilder(64 << 21, cluster_bits=21)
    for index in range(64):
        builder.entry(index, (1 << 62) | ((1 << 13) - 1) << 49 | 4 << 21)
    image = builder.build()
    path = write(tmp_path / "x.qcow2", image.ljust(8 << 21, b"\xff"))
    found = ask(path)
    assert found.read == "CorruptImage"
    assert not found.opened
