"""``resize`` in the library: sizes, what is added reads as zeros, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from imgtool.ops.bitmap import bitmaps_of
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import check_extents
from tests.kit.machine import save_machine
from tests.kit.referee import check

MiB = 1 << 20


def _contents(path: Path, kind: str) -> bytes:
    with imgtool.open(path, format=kind) as disk:
        content = disk.read_at(0, disk.size)
        check_extents(disk, content)
        return content


@pytest.fixture(params=["raw", "qcow2"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A disk of 1 MiB, filled with ones."""
    path = tmp_path / f"disk.{request.param}"
    imgtool.create(path, MiB, format=request.param)
    with imgtool.open(path, format=request.param, writable=True) as opened:
        opened.write_at(0, b"\1" * MiB)
    return path


@pytest.mark.parametrize(
    ("size", "result"),
    [
        (2 * MiB, 2 * MiB),
        ("2M", 2 * MiB),
        ("+512k", 1536 << 10),
        ("-512k", 512 << 10),
        ("1M", MiB),
        ("+0", MiB),
        ("-1048064", 512),
        ("3G", 3 << 30),
    ],
)
def test_sizes(disk: Path, size: int | str, result: int) -> None:
    kind = disk.suffix[1:]
    assert imgtool.resize(disk, size, format=kind, shrink=True) == result
    with imgtool.open(disk, format=kind) as opened:
        assert opened.size == result
        kept = min(result, MiB)
        assert opened.read_at(0, kept) == b"\1" * kept
        rest = min(result - kept, MiB)
        assert opened.read_at(kept, rest) == bytes(rest)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("512k", {}),
        ("-1", {}),
        (0, {}),
        ("-1M", {"shrink": True}),
        ("-2M", {"shrink": True}),
        ("x", {}),
        ("+", {}),
        ("2M", {"preallocation": "some"}),
        ("1M", {"preallocation": "full"}),
        ("512k", {"preallocation": "full", "shrink": True}),
    ],
)
def test_refusals_change_nothing(disk: Path, size: int | str, options: dict[str, str]) -> None:
    before = disk.read_bytes()
    with pytest.raises(imgtool.BadOption):
        imgtool.resize(disk, size, format=disk.suffix[1:], **options)  # type: ignore[arg-type]
    assert disk.read_bytes() == before


def test_a_guess_is_not_resized(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MiB))
    with pytest.raises(imgtool.ImageError, match="specify the 'raw' format"):
        imgtool.resize(tmp_path / "disk", "2M")
    assert (tmp_path / "disk").stat().st_size == MiB


@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_preallocation(disk: Path, preallocation: str) -> None:
    kind = disk.suffix[1:]
    if kind == "qcow2":
        # Free clusters of a file that was longer once hold old data.
        with disk.open("ab") as file:
            file.write(b"\xff" * (4 * MiB))
    elif preallocation == "metadata":
        return
    imgtool.resize(disk, "5M", format=kind, preallocation=preallocation)  # type: ignore[arg-type]
    assert _contents(disk, kind) == b"\1" * MiB + bytes(4 * MiB)
    if preallocation in ("falloc", "full"):
        assert disk.stat().st_blocks * 512 >= 5 * MiB
    if kind == "qcow2":
        assert imgtool.check(disk).clean


def test_failing_preallocation_leaves_raw_as_it_was() -> None:
    class Full(MemoryStorage):
        def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
            raise OSError(28, "No space left on device")

    storage = Full(b"\1" * MiB)
    with imgtool.open(storage, format="raw", writable=True) as disk:
        with pytest.raises(OSError, match="No space"):
            disk.resize(2 * MiB, preallocation="falloc")
        assert disk.size == MiB
        assert storage.size() == MiB


def test_what_is_below_does_not_show_behind_the_old_end(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "base.qcow2", MiB)
    with imgtool.open(tmp_path / "base.qcow2", writable=True) as base:
        base.write_at(0, b"\2" * MiB)
    top = tmp_path / "top.qcow2"
    imgtool.create(top, "512k", backing_file="base.qcow2", backing_format="qcow2")
    imgtool.resize(top, "2M")
    assert _contents(top, "qcow2") == b"\2" * (MiB // 2) + bytes(3 * MiB // 2)


def test_the_state_of_a_machine_does_not_show_in_a_grown_disk(tmp_path: Path) -> None:
    path = tmp_path / "vm.qcow2"
    imgtool.create(path, MiB)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"\1" * MiB)
    save_machine(path, "state")
    imgtool.apply_snapshot(path, "state")
    imgtool.resize(path, "2G")
    with imgtool.open(path) as disk:
        assert all(extent.reads_zero for extent in disk.extents(MiB))
    found = check(path)
    assert found["exit"] == 0, found
    imgtool.apply_snapshot(path, "state")
    imgtool.delete_snapshot(path, "state")
    assert check(path)["exit"] == 0


def test_a_bitmap_that_was_only_just_added_follows(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, MiB)
    with imgtool.open(path, writable=True) as disk:
        bitmaps_of(disk).add("new", 65536)
        disk.resize(4 * MiB)
        disk.write_at(3 * MiB, b"behind the old end")
    with imgtool.open(path) as disk:
        assert list(bitmaps_of(disk).ranges("new")) == [(3 * MiB, 65536)]
