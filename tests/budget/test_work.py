"""Work: each walk through an image tells its steps, and what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool import Budget, OverBudget
from tests.budget.calls import CALLS, WRITING, KiB, MiB, plain
from tests.kit.qcow2 import ImageBuilder


def test_steps_of_a_map(tmp_path: Path) -> None:
    """An extent, or a KiB of tables, is a step: the same image takes the same, one less is over."""
    builder = ImageBuilder(8192 << 16)
    for index in range(0, 100, 2):
        builder.data(index)
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    budget = Budget(max_work=64 + 100)
    assert len(list(imgtool.map(path, budget=budget))) == 100
    assert budget.work == 164
    with pytest.raises(OverBudget) as caught:
        list(imgtool.map(path, budget=Budget(max_work=163)))
    assert (caught.value.needed, caught.value.allowed) == (164, 163)
    assert caught.value.filename == str(path)


def shrink(path: Path, budget: Budget) -> object:
    return imgtool.resize(path, 512, shrink=True, budget=budget)


@pytest.mark.parametrize(
    "name", sorted({*CALLS, *WRITING} - {"open", "info", "snapshots", "open to write"})
)
def test_steps_of_every_walk(tmp_path: Path, name: str) -> None:
    """What a call has taken is enough for it, and one step less is not."""
    path = tmp_path / "disk.qcow2"
    builder = ImageBuilder(64 << 16, backing=b"base.qcow2", backing_format=b"qcow2")
    builder.data(0)
    builder.data(5)
    image = builder.build()
    plain(tmp_path / "base.qcow2")
    call = {**CALLS, **WRITING, "resize": shrink}[name]
    path.write_bytes(image)
    budget = Budget()
    call(path, budget)
    if not budget.work:
        assert name in ("amend", "bitmap", "resize")
        return
    path.write_bytes(image)
    call(path, Budget(max_work=budget.work))
    path.write_bytes(image)
    with pytest.raises(OverBudget, match="--max-work"):
        call(path, Budget(max_work=budget.work - 1))
    assert not imgtool.check(path).corruptions


@pytest.mark.parametrize("name", ["resize", "take", "apply", "delete"])
def test_work_that_is_refused_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, "64M", cluster_size="4k")
    with imgtool.open(path, writable=True) as device:
        for offset in range(0, 64 * MiB, 2 * MiB):
            device.write_at(offset, b"x")
    imgtool.create_snapshot(path, "one")
    imgtool.bitmap(path, "dirty", "add")
    calls: dict[str, Callable[[Budget], object]] = {
        "resize": lambda budget: imgtool.resize(path, MiB, shrink=True, budget=budget),
        "take": lambda budget: imgtool.create_snapshot(path, "two", budget=budget),
        "apply": lambda budget: imgtool.apply_snapshot(path, "one", budget=budget),
        "delete": lambda budget: imgtool.delete_snapshot(path, "one", budget=budget),
    }
    if name == "apply":
        imgtool.bitmap(path, "dirty", "remove")
    before = path.read_bytes()
    with pytest.raises(OverBudget):
        calls[name](Budget(max_work=1))
    assert path.read_bytes() == before
    calls[name](Budget(max_work=1000))
    assert path.read_bytes() != before
    assert imgtool.check(path).clean


def test_salvage_is_no_way_round_the_budget(tmp_path: Path) -> None:
    path = plain(tmp_path / "disk.qcow2")
    with pytest.raises(OverBudget):
        imgtool.convert(
            path, tmp_path / "out", format="raw", salvage=True, budget=Budget(max_work=1)
        )
    assert not (tmp_path / "out").exists()


def test_reading_is_no_work(tmp_path: Path) -> None:
    with imgtool.open(plain(tmp_path / "disk.qcow2"), budget=Budget(max_work=0)) as device:
        device.read_at(0, MiB)
        assert device.as_file().read(MiB)


def test_holes_of_the_file_below_extents_are_steps(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for place in range(10):
            file.seek(place * 64 * KiB)
            file.write(b"x" * 4096)
    budget = Budget()
    extents = list(imgtool.map(path, format="raw", budget=budget))
    assert budget.work == len(extents) >= 1
    with pytest.raises(OverBudget):
        list(imgtool.map(path, format="raw", budget=Budget(max_work=budget.work - 1)))
