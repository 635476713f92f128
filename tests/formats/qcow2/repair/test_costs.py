"""What a repair takes of memory and of the host's storage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import imgtool
from imgtool.budget import Budget
from imgtool.errors import ImageError, OverBudget
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import (
    DAMAGES,
    LOST,
    TABLE_CLUSTERS,
    TABLE_OFFSET,
    built,
    fill,
)
from tests.formats.qcow2.repair.judging import repaired, seen
from tests.kit.corrupt import put
from tests.kit.limits import measure, within_limits
from tests.kit.qcow2 import DIRTY, ImageBuilder
from tests.kit.views import assert_nothing_lost


@pytest.mark.parametrize("name", ["512", "v3", "refcount-1"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_too_little_memory_is_found_before_anything_is_written(name: str, dry_run: bool) -> None:
    """Of each damage the least memory is looked for that does, so much is tried that does not."""
    builder, image = built(name)
    for damage_name, damage in DAMAGES.items():
        damaged = damage(builder, image)
        low, high, refused = 0, 2 << 20, 0
        while high - low > 512:
            middle = (low + high) // 2
            budget = Budget(max_memory=middle)
            storage = MemoryStorage(damaged, "x.img")
            storage.account = budget.account(storage.name)
            try:
                repair(storage, "all", dry_run=dry_run)
                high = middle
            except OverBudget:
                assert storage.getvalue() == damaged, (damage_name, middle)
                low, refused = middle, refused + 1
            except ImageError:
                assert damage_name.startswith("cut-"), damage_name
                break
            assert budget.taken == 0
        assert refused or damage_name.startswith("cut-")


def test_memory_and_size_in_the_library(tmp_path: Path) -> None:
    builder, image = built("v3")
    path = tmp_path / "x.qcow2"
    path.write_bytes(LOST(builder, image))
    before = path.read_bytes()
    size = imgtool.info(path).virtual_size
    for budget in (Budget(max_memory=32 << 10), Budget(max_virtual_size=size - 1)):
        with pytest.raises(OverBudget) as caught:
            imgtool.check(path, repair="all", budget=budget)
        assert caught.value.filename == str(path)
        assert budget.taken == 0
        assert path.read_bytes() == before
    enough = Budget(max_memory=4 << 20, max_virtual_size=size)
    assert imgtool.check(path, repair="all", budget=enough).corruptions_fixed
    assert enough.taken == 0


def test_the_refcounts_of_a_full_tebibyte(tmp_path: Path) -> None:
    """Each of the surveys lets go of what the one before it has counted."""
    path = tmp_path / "full.qcow2"
    imgtool.create(path, 1 << 40, preallocation="metadata")
    with path.open("r+b") as file:
        head = file.read(TABLE_CLUSTERS)
        file.seek(struct.unpack_from(">Q", head, TABLE_OFFSET)[0])
        file.write(bytes(1 << 16))

    report, cost = measure(lambda: imgtool.check(path, repair="all"))
    assert report.corruptions_fixed > 1 << 24
    assert report.clean
    assert cost.memory < 150 << 20


def test_a_file_of_great_length_that_holds_nothing(tmp_path: Path) -> None:
    builder = ImageBuilder(1 << 40, header={"incompatible_features": DIRTY})
    builder.data(0)
    builder.data(1 << 20)
    path = tmp_path / "long.qcow2"
    path.write_bytes(fill("refcount-block-0", 0)(builder, builder.build()))
    with path.open("r+b") as file:
        file.truncate(8 << 40)
    report = within_limits(lambda: imgtool.check(path, repair="all"))
    assert report.clean
    assert report.corruptions_fixed
    assert path.stat().st_blocks * 512 < 16 << 20


def test_what_lies_upon_each_other_does_not_blow_up_the_file() -> None:
    """One cluster of data under every entry, and nothing that could count it twice."""
    builder = ImageBuilder(1 << 30, cluster_bits=16, refcount_order=0)
    host = builder.data(0)
    image = builder.build()
    l2 = builder.places["l2-0"][0]
    damaged = put(image, l2, struct.pack(">Q", host) * 8192)
    after, result = repaired(damaged)
    assert len(after) < 300 << 20
    assert result.corruptions
    assert_nothing_lost(seen(damaged), seen(after))
