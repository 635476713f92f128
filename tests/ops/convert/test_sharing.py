"""Blocks that the source and the target share where the host's file system can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.storage import copying
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from tests.kit.tools import find_tool

MIB = 1 << 20

#: Data, a hole, data with zeros in the middle, and a tail that is no whole block.
SIZE = 16 * MIB + 512


def content(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(8 * MIB)
        file.write(os.urandom(MIB) + bytes(MIB) + os.urandom(MIB))
        file.truncate(SIZE - 512)
        file.seek(SIZE - 512)
        file.write(b"tail" * 128)
    return path


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What is shared, as ``(source offset, offset, length)``: the bytes are copied instead."""
    calls: list[tuple[int, int, int]] = []

    def share(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
        calls.append((source_offset, offset, length))
        os.pwrite(target, os.pread(source, length, source_offset), offset)
        return length

    monkeypatch.setattr(copying, "share", share)
    return calls


@pytest.mark.parametrize("options", [{}, {"cluster_size": 2 * MIB}, {"extended_l2": True}])
def test_what_is_shared(
    tmp_path: Path, shared: list[tuple[int, int, int]], options: dict[str, Any]
) -> None:
    raw = content(tmp_path / "a.raw")
    image, back = tmp_path / "a.qcow2", tmp_path / "back.raw"
    imgtool.convert(raw, image, **options)
    assert all(not (start | offset | length) % 4096 for start, offset, length in shared)
    data = 5 * MIB
    whole = options.get("cluster_size", 65536)
    # No hole and no zeros, but for what is missing to whole clusters.
    assert data <= sum(length for _, _, length in shared) <= data + 4 * whole
    assert imgtool.check(image).clean
    assert imgtool.compare(raw, image).identical
    shared.clear()
    imgtool.convert(image, back)
    assert sum(length for _, _, length in shared) == data
    assert back.read_bytes() == raw.read_bytes()


def test_what_is_not(tmp_path: Path, shared: list[tuple[int, int, int]]) -> None:
    raw, target = content(tmp_path / "a.raw"), tmp_path / "b.qcow2"
    for options in (
        {"share_blocks": False},
        {"cluster_size": 512, "source_format": "raw"},
        {"preallocation": "full"},
        {"preallocation": "falloc"},
        {"sparse_size": 0},
    ):
        imgtool.convert(raw, target, **options)  # type: ignore[arg-type]
        if "cluster_size" not in options:
            assert not shared, options
        assert imgtool.compare(raw, target).identical
        shared.clear()


def test_a_host_that_cannot_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Storage] = []

    def share_from(self: FileStorage, source: Storage, *place: int) -> bool:
        asked.append(source)
        return False

    monkeypatch.setattr(FileStorage, "share_from", share_from)
    raw, target = content(tmp_path / "a.raw"), tmp_path / "b.qcow2"
    imgtool.convert(raw, target, workers=1)
    assert len(asked) == 1
    assert imgtool.compare(raw, target).identical


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A directory on XFS, whose files can share blocks."""
    mkfs, disk, folder = find_tool("mkfs.xfs"), tmp_path / "disk", tmp_path / "mounted"
    if mkfs is None or not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("XFS is mounted by root, with mkfs.xfs")
    with disk.open("wb") as file:
        file.truncate(400 * MIB)
    subprocess.run([mkfs, "-q", "-m", "reflink=1", str(disk)], check=True)
    folder.mkdir()
    mounted = subprocess.run(["mount", "-o", "loop", str(disk), str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"XFS cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_on_xfs(xfs: Path) -> None:
    raw = content(xfs / "a.raw")
    before = used(xfs)
    imgtool.convert(raw, xfs / "a.qcow2")
    imgtool.convert(xfs / "a.qcow2", xfs / "back.raw")
    assert used(xfs) - before < 2 * MIB
    assert (xfs / "back.raw").read_bytes() == raw.read_bytes()
    assert imgtool.check(xfs / "a.qcow2").clean
    holes = [extent for extent in imgtool.map(xfs / "back.raw") if extent.reads_zero]
    assert sum(extent.length for extent in holes) >= 9 * MIB
    imgtool.convert(raw, xfs / "copied.qcow2", share_blocks=False)
    assert used(xfs) - before > 5 * MIB
