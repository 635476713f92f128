"""Images that are small and claim to be enormous, or lead in circles: everything comes to an end.

Each is described, checked, mapped and read in a process that may take 256 MiB more than it has, and
must be open within two seconds of the processor's time.
"""

from __future__ import annotations

import itertools
import os
import struct
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


def ask(path: Path, *, extents: int | None = None) -> Outcome:
    """Put every question to an image; of its map, so many extents are looked at, or all."""

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

    found, cost = measure(work, ceiling=MEMORY)
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
