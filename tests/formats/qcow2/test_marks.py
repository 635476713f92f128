"""The dirty mark around snapshots, and how an image of version 2 comes to have one."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

import imgtool
from imgtool.formats.qcow2 import marks, schema
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.schema import Compatible, ExtensionType, Incompatible
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.storage.file import FileStorage
from tests.kit import referee
from tests.kit.disks import open_disk
from tests.kit.faults import FailingStorage
from tests.kit.tools import require_tool

SIZE = 1 << 20
DATA = bytes(range(256)) * 1024


def made(path: Path, **options: object) -> Path:
    imgtool.create(path, SIZE, **{"compat": "0.10", "cluster_size": 4096, **options})
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, DATA)
    return path


def header_of(path: Path) -> Header:
    with FileStorage.open(path) as storage:
        return read_header(storage)


def broken_off(path: Path, *, after: int) -> WritableQcow2:
    """A disk whose snapshot has failed at its write number ``after``; from then on all is well."""
    writes = 0
    failing = False

    def fails(what: str, offset: int, length: int) -> int:
        nonlocal writes
        if what != "write" or not failing:
            return 0
        writes += 1
        return errno.EIO if writes > after else 0

    disk = open_disk(FailingStorage(FileStorage.open(path, writable=True), fails), writable=True)
    assert isinstance(disk, WritableQcow2)
    failing = True
    with pytest.raises(OSError, match="Input/output"):
        disk.create_snapshot("s")
    failing = False
    return disk


def test_version_2_is_back_when_the_snapshot_is_taken(tmp_path: Path) -> None:
    path = made(tmp_path / "a.qcow2")
    imgtool.create_snapshot(path, "s")
    header = header_of(path)
    assert header.version == 2
    assert header.extension(ExtensionType.WAS_VERSION_2) is None


@pytest.mark.parametrize("after", range(1, 5))
def test_a_fault_leaves_a_marked_image_that_the_next_writer_repairs(
    tmp_path: Path, after: int
) -> None:
    path = made(tmp_path / "a.qcow2")
    broken_off(path, after=after).close()
    assert header_of(path).version == 3
    assert header_of(path).dirty
    with imgtool.open(path) as disk:
        assert disk.read_at(0, len(DATA)) == DATA
    with imgtool.open(path, writable=True) as disk:
        assert disk.read_at(0, len(DATA)) == DATA
    assert header_of(path).version == 2
    found = imgtool.check(path)
    assert (found.corruptions, found.leaks) == (0, 0)


def test_what_is_written_after_a_fault_keeps_to_version_2(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"\xff" * SIZE)
    path = made(tmp_path / "a.qcow2", backing_file="base.raw", backing_fmt="raw")
    disk = broken_off(path, after=2)
    # In version 3 this would be a zero flag, which version 2 does not know.
    disk.write_zeroes(0, 8192)
    disk.close()
    with imgtool.open(path, writable=True) as again:
        assert again.read_at(0, len(DATA)) == bytes(8192) + DATA[8192:]
    assert header_of(path).version == 2
    assert not imgtool.check(path).corruptions


def test_for_qemu_it_is_an_image_of_version_3(tmp_path: Path) -> None:
    require_tool("qemu-img")
    path = made(tmp_path / "a.qcow2")
    broken_off(path, after=3).close()
    assert referee.run("qemu-img", "check", "-r", "all", path).returncode == 0
    header = header_of(path)
    assert (header.version, header.dirty) == (3, False)
    with imgtool.open(path, writable=True) as disk:
        disk.write_zeroes(0, 4096)
    imgtool.create_snapshot(path, "s")
    assert header_of(path).extension(ExtensionType.WAS_VERSION_2) is None
    assert header_of(path).version == 3
    assert not imgtool.check(path).corruptions


def test_without_room_for_the_mark_there_is_none(tmp_path: Path) -> None:
    name = "b" * 410
    (tmp_path / name[:200]).mkdir()
    name = f"{name[:200]}/{name[:200]}"
    (tmp_path / name).write_bytes(bytes(SIZE))
    path = made(tmp_path / "a.qcow2", cluster_size=512, backing_file=name, backing_fmt="raw")
    assert marks.dirty(header_of(path)) is None
    imgtool.create_snapshot(path, "s")
    assert header_of(path).version == 2
    assert not imgtool.check(path).corruptions


@pytest.mark.parametrize(
    "other",
    [
        {"compatible": Compatible.LAZY_REFCOUNTS},
        {"incompatible": Incompatible.DIRTY | Incompatible.EXTENDED_L2},
        {"incompatible": Incompatible.CORRUPT},
    ],
)
def test_what_others_have_made_of_it_stays_as_it_is(
    tmp_path: Path, other: dict[str, object]
) -> None:
    header = marks.dirty(header_of(made(tmp_path / "a.qcow2")))
    assert header is not None
    assert marks.unmarked(header).version == 2
    assert marks.unmarked(header).header_length == schema.HEADER_V2_LENGTH
    assert marks.unmarked(replace(header, **other)).version == 3  # type: ignore[arg-type]
