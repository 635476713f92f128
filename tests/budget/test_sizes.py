"""How large a disk may be, in images that are read, written and made."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import imgtool
from imgtool import Budget, OverBudget
from tests.budget.calls import CALLS, WRITING, MiB, plain
from tests.kit.qcow2 import ImageBuilder


@pytest.mark.parametrize("name", CALLS)
def test_virtual_size(tmp_path: Path, name: str) -> None:
    path = plain(tmp_path / "disk.qcow2")
    CALLS[name](path, Budget(max_virtual_size=MiB))
    with pytest.raises(OverBudget) as caught:
        CALLS[name](path, Budget(max_virtual_size=MiB - 1))
    assert (caught.value.needed, caught.value.allowed) == (MiB, MiB - 1)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", WRITING)
def test_virtual_size_of_what_is_written(tmp_path: Path, name: str) -> None:
    path = plain(tmp_path / "disk.qcow2")
    before = path.read_bytes()
    with pytest.raises(OverBudget) as caught:
        WRITING[name](path, Budget(max_virtual_size=MiB - 1))
    assert (caught.value.needed, caught.value.allowed) == (MiB, MiB - 1)
    assert path.read_bytes() == before
    budget = Budget(max_virtual_size=MiB)
    WRITING[name](path, budget)
    assert budget.taken == 0


def test_virtual_size_of_what_is_made(tmp_path: Path) -> None:
    path, budget = tmp_path / "disk.qcow2", Budget(max_virtual_size=MiB)
    with pytest.raises(OverBudget):
        imgtool.create(path, MiB + 512, budget=budget)
    assert not path.exists()
    imgtool.create(path, MiB, budget=budget)
    with pytest.raises(OverBudget):
        imgtool.resize(path, "+512", budget=budget)
    assert imgtool.info(path).virtual_size == MiB
    assert budget.taken == 0
    with pytest.raises(OverBudget):
        imgtool.create(
            tmp_path / "top.qcow2",
            backing_file=path.name,
            backing_format="qcow2",
            budget=Budget(max_virtual_size=MiB - 512),
        )


def test_commit_and_snapshots_of_other_sizes(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, 2 * MiB)
    imgtool.create_snapshot(base, "large")
    imgtool.resize(base, MiB, shrink=True)
    with pytest.raises(OverBudget):
        imgtool.apply_snapshot(base, "large", budget=Budget(max_virtual_size=MiB))
    imgtool.create(top, MiB, backing_file="base.qcow2", backing_format="qcow2")
    with pytest.raises(OverBudget):
        imgtool.commit(top, budget=Budget(max_virtual_size=MiB - 512))
    imgtool.commit(top, budget=Budget(max_virtual_size=MiB))
    imgtool.apply_snapshot(base, "large", budget=Budget(max_virtual_size=2 * MiB))
    imgtool.delete_snapshot(base, "large", budget=Budget(max_virtual_size=2 * MiB))
    assert imgtool.info(base).virtual_size == 2 * MiB


def test_virtual_size_of_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(2 * MiB))
    path = plain(tmp_path / "disk.qcow2", backing=b"base.raw", backing_format=b"raw")
    with pytest.raises(OverBudget) as caught:
        imgtool.open(path, budget=Budget(max_virtual_size=MiB))
    assert caught.value.filename == str(tmp_path / "base.raw")
    assert imgtool.info(path, budget=Budget(max_virtual_size=MiB)).virtual_size == MiB


def test_virtual_size_of_a_snapshot(tmp_path: Path) -> None:
    builder = ImageBuilder(MiB)
    builder.snapshot(b"1", b"one", extra=struct.pack(">QQ", 0, 256 * MiB))
    (tmp_path / "disk.qcow2").write_bytes(builder.build())
    budget = Budget(max_virtual_size=MiB)
    imgtool.open(tmp_path / "disk.qcow2", budget=budget).close()
    with pytest.raises(OverBudget):
        imgtool.open(tmp_path / "disk.qcow2", snapshot="one", budget=budget)
