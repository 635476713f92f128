"""Checks of images that are made byte by byte: sound ones, and ones made to be costly."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imgtool.chain import Opener, Reference
from imgtool.errors import ImageError
from imgtool.findings import KEPT, CheckResult
from imgtool.formats.qcow2.check import check
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import flips, overwrites, put, truncations
from tests.kit.disks import open_disk
from tests.kit.effort import effort
from tests.kit.limits import MiB, within_limits
from tests.kit.qcow2 import COPIED, ImageBuilder
from tests.kit.qcow2_gallery import GALLERY


def checked(image: bytes, report: Callable[[str], None] | None = None) -> CheckResult:
    with open_disk(MemoryStorage(image, "x.img"), "qcow2", follow=False) as device:
        return check(device, report)


def built(**options: object) -> tuple[ImageBuilder, bytes]:
    builder = ImageBuilder(64 << 12, cluster_bits=12, **options)  # type: ignore[arg-type]
    for index in range(0, 40, 2):
        builder.data(index)
    return builder, builder.build()


@pytest.mark.parametrize("name", GALLERY)
def test_sound_images(name: str) -> None:
    result = checked(GALLERY[name]().build())
    assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), result.messages
    assert result.messages == []


def test_figures() -> None:
    builder = ImageBuilder(100 << 12, cluster_bits=12)
    for index in (0, 1, 2, 10, 11):
        builder.data(index)
    far = builder.allocate(1 << 12)
    builder.allocate(1 << 12)
    builder.data(20, at=far)
    builder.compressed(30)
    builder.compressed(31)
    builder.zero(40)
    builder.zero(41, host=True)
    image = builder.build()
    result = checked(image)
    assert result.total_clusters == 100
    assert result.allocated_clusters == 9
    assert result.compressed_clusters == 2
    # Both that are compressed, and the cluster behind the gap.
    assert result.fragmented_clusters == 3
    assert result.image_end_offset == len(image)
    assert (result.corruptions, result.leaks) == (0, 0)


def test_a_leak_and_a_lost_refcount() -> None:
    builder, image = built()
    block = builder.places["refcount-block-0"][0]
    host = builder.mapping_of(0)[0] >> 12 & 0xFFFF
    other = builder.mapping_of(2)[0] >> 12 & 0xFFFF
    image = put(put(image, block + 2 * host, b"\0\2"), block + 2 * other, b"\0\0")
    result = checked(image)
    assert (result.corruptions, result.leaks) == (3, 1)
    assert result.messages[:2] == [
        f"Leaked cluster {host} refcount=2 reference=1",
        f"ERROR cluster {other} refcount=0 reference=1",
    ]


def test_findings_are_counted_beyond_those_that_are_kept() -> None:
    builder = ImageBuilder(4096 << 9, cluster_bits=9)
    for index in range(2000):
        builder.entry(index, (1 << 40) + (index << 9) | COPIED)
    image = builder.build()
    result = checked(image)
    assert result.corruptions == 4000
    assert (len(result.messages), result.untold) == (KEPT, 3000)
    told: list[str] = []
    result = checked(image, told.append)
    assert (len(told), result.untold, result.corruptions) == (4000, 0, 4000)
    assert told[:KEPT] == result.messages


def test_tables_that_are_named_often_count_often() -> None:
    builder, image = built()
    table = builder.places["l2-0"][0]
    l1 = builder.places["l1"][0]
    for times in (2, 5):
        # Room for more entries is there: the L1 table has a cluster to itself.
        entries = struct.pack(f">{times}Q", *[table | COPIED] * times)
        patched = put(put(image, l1, entries), 36, struct.pack(">I", times))
        result = checked(patched)
        # Each of its 20 clusters, and the table, are referred to more often than counted.
        assert result.corruptions == 21
        assert f"ERROR cluster {table >> 12} refcount=1 reference={times}" in result.messages
        assert result.allocated_clusters == 20 * times


@pytest.mark.parametrize("name", ["v3", "512", "extended", "refcount-1", "refcount-64"])
def test_damage_is_a_count_or_a_typed_error(name: str) -> None:
    builder = GALLERY[name]()
    image = builder.build()
    regions = [*builder.regions(), (0, 104)]
    edges = [offset for offset, _ in regions]
    damaged = [
        *flips(image, regions, seed=3, count=effort(40)),
        *overwrites(image, regions, seed=4, count=effort(40)),
        *(image[:length] for length in truncations(len(image), edges)),
    ]
    for changed in damaged:
        try:
            result = checked(changed)
        except ImageError:
            continue
        found = result.corruptions + result.leaks + result.check_errors
        hints = sum(text[:4] in ("Use ", "qcow") for text in result.messages)
        assert found + hints == len(result.messages) + result.untold
        assert result.image_end_offset >= 0


# Images that are small on the host, and ask for a great deal of work


def header(cluster_bits: int, size: int, l1: tuple[int, int], table: tuple[int, int]) -> bytes:
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, cluster_bits, size, 0, l1[1], l1[0],
        table[0], table[1], 0, 0, 0, 0, 0, 4, 104,
    ) + bytes(8)  # fmt: skip


def lay_out(path: Path, length: int, parts: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(length)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)


def words(values: object) -> bytes:
    return np.asarray(values, np.uint64).astype(">u8").tobytes()


def costs(path: Path, *, seconds: float = 20, memory: int = 256 * MiB) -> CheckResult:
    def work() -> CheckResult:
        with Opener(follow=False).reference(Reference(str(path), "qcow2")) as device:
            return check(device)

    return within_limits(work, seconds=seconds, memory=memory)


def test_a_long_file_that_holds_nothing(tmp_path: Path) -> None:
    path, length = tmp_path / "x", (1 << 43)
    lay_out(path, length, {0: header(9, 1 << 20, (1 << 19, 32), (1 << 20, 1))})
    result = costs(path)
    assert result.leaks == 0
    assert result.corruptions


def test_one_l2_table_four_million_times(tmp_path: Path) -> None:
    path, cluster, entries = tmp_path / "x", 1 << 21, 4 << 20
    for host in (31, 3100):
        lay_out(
            path,
            64 * cluster,
            {
                0: header(21, 1 << 40, (cluster, entries), (cluster * 20, 1)),
                cluster: words(np.full(entries, cluster * 30 | COPIED, np.uint64)),
                cluster * 30: words(np.full(cluster // 8, cluster * host | COPIED, np.uint64)),
            },
        )
        result = costs(path)
        assert result.corruptions > entries * cluster // 8
        assert len(result.messages) == KEPT


def test_one_refcount_block_a_million_times(tmp_path: Path) -> None:
    path, cluster, entries = tmp_path / "x", 1 << 16, 1 << 20
    lay_out(
        path,
        1 << 43,
        {
            0: header(16, 1 << 30, (cluster, 2), (cluster * 2, 128)),
            cluster * 2: words(np.full(entries, cluster * 200, np.uint64)),
            cluster * 200: b"\0\1" * (cluster // 2),
        },
    )
    result = costs(path)
    assert result.leaks > 100_000_000
    assert result.corruptions > entries - 1


def test_references_all_over_a_long_file(tmp_path: Path) -> None:
    path, cluster, tables = tmp_path / "x", 1 << 16, 32
    chance = np.random.default_rng(1)
    hosts = chance.integers(1000, (1 << 43) // cluster, tables * 8192, dtype=np.uint64)
    lay_out(
        path,
        1 << 43,
        {
            0: header(16, tables << 29, (cluster, tables), (cluster * 2, 1)),
            cluster: words((np.arange(tables, dtype=np.uint64) + 100) * cluster | COPIED),
            cluster * 100: words(hosts * np.uint64(cluster) | np.uint64(COPIED)),
        },
    )
    result = costs(path)
    assert result.corruptions > 2 * tables * 8000
    assert result.allocated_clusters == tables * 8192
