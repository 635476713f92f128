"""Internal snapshots in the library: taken, listed, applied and deleted, with and without state."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from tests.kit.machine import save_machine
from tests.kit.referee import check, contents

KiB = 1 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, "1M", cluster_size="4k")
    _write(path, 0, b"a" * 100 * KiB)
    return path


def _write(path: Path, offset: int, data: bytes) -> None:
    with imgtool.open(path, writable=True) as opened:
        opened.write_at(offset, data)


def _read(path: Path, offset: int, length: int, snapshot: str | None = None) -> bytes:
    with imgtool.open(path, snapshot=snapshot) as opened:
        return opened.read_at(offset, length)


def _names(path: Path) -> list[tuple[str, str]]:
    return [(one.id, one.name) for one in imgtool.snapshots(path)]


def test_the_life_of_a_snapshot(disk: Path, tmp_path: Path) -> None:
    imgtool.create_snapshot(disk, "one")
    _write(disk, 50 * KiB, b"b" * 100 * KiB)
    imgtool.create_snapshot(disk, "two")
    _write(disk, 0, b"c" * KiB)
    assert _names(disk) == [("1", "one"), ("2", "two")]
    assert _read(disk, 0, 1, "one") == b"a"
    assert contents(disk, "qcow2", tmp_path, snapshot="two")[50 * KiB : 51 * KiB] == b"b" * KiB
    imgtool.apply_snapshot(disk, "one")
    assert _read(disk, 0, 200 * KiB) == b"a" * 100 * KiB + bytes(100 * KiB)
    imgtool.apply_snapshot(disk, "2")
    assert _read(disk, 50 * KiB, 100 * KiB) == b"b" * 100 * KiB
    imgtool.delete_snapshot(disk, "one")
    assert _names(disk) == [("2", "two")]
    imgtool.create_snapshot(disk, "three")
    imgtool.delete_snapshot(disk, "two")
    assert _names(disk) == [("3", "three")]
    assert _read(disk, 0, 200 * KiB) == b"a" * 50 * KiB + b"b" * 100 * KiB + bytes(50 * KiB)
    assert check(disk)["exit"] == 0


def test_ids_names_and_what_is_not_there(disk: Path) -> None:
    for name in ("x", "x", "1", "", "ü", "n" * 255):
        imgtool.create_snapshot(disk, name)
    assert [name for _, name in _names(disk)] == ["x", "x", "1", "", "ü", "n" * 255]
    with pytest.raises(imgtool.BadOption, match="255 bytes"):
        imgtool.create_snapshot(disk, "n" * 256)
    # Names are what is deleted, so that an id that looks like a name does no harm.
    imgtool.delete_snapshot(disk, "1")
    imgtool.delete_snapshot(disk, "x")
    assert _names(disk)[:2] == [("2", "x"), ("4", "")]
    with pytest.raises(imgtool.BadOption, match=r"Could not delete snapshot '2': .*not found"):
        imgtool.delete_snapshot(disk, "2")
    with pytest.raises(imgtool.BadOption, match=r"Could not apply snapshot 'y'.*not found"):
        imgtool.apply_snapshot(disk, "y")
    assert check(disk)["exit"] == 0


def test_what_they_record(disk: Path) -> None:
    imgtool.create_snapshot(disk, "one")
    (found,) = imgtool.snapshots(disk)
    assert (found.vm_state_size, found.vm_clock_nsec, found.icount) == (0, 0, 0)
    assert found.disk_size == 1 << 20
    assert found.to_dict()["name"] == "one"
    imgtool.resize(disk, "2M")
    imgtool.create_snapshot(disk, "two")
    imgtool.apply_snapshot(disk, "one")
    with imgtool.open(disk) as opened:
        assert opened.size == 1 << 20
    imgtool.apply_snapshot(disk, "two")
    with imgtool.open(disk) as opened:
        assert opened.size == 2 << 20


def test_formats_without_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    imgtool.create(path, "1M")
    assert imgtool.snapshots(path) == []
    for change in (imgtool.create_snapshot, imgtool.apply_snapshot, imgtool.delete_snapshot):
        with pytest.raises(imgtool.ImageError, match="snapshot 'x': Operation not supported"):
            change(path, "x", format="raw")


def test_images_with_a_data_file_refuse(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, "1M", data_file="disk.data")
    with pytest.raises(imgtool.ImageError, match="Operation not supported"):
        imgtool.create_snapshot(path, "x")
    assert imgtool.snapshots(path) == []


def test_what_is_below_need_not_be_there(disk: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    imgtool.create(top, backing_file="disk.qcow2", backing_format="qcow2")
    _write(top, 0, b"t")
    disk.rename(tmp_path / "elsewhere")
    imgtool.create_snapshot(top, "x")
    imgtool.apply_snapshot(top, "x")
    imgtool.delete_snapshot(top, "x")
    (tmp_path / "elsewhere").rename(disk)
    assert _read(top, 0, 2) == b"ta"
    assert check(top)["exit"] == 0


def test_refcounts_too_narrow_to_share(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, "1M", refcount_bits=1)
    _write(path, 0, b"x")
    before = _read(path, 0, 1 << 20)
    with pytest.raises(imgtool.ImageError, match="refcount"):
        imgtool.create_snapshot(path, "x")
    assert imgtool.snapshots(path) == []
    assert _read(path, 0, 1 << 20) == before
    assert check(path).get("corruptions", 0) == 0


def test_machine_states_come_to_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "vm.qcow2"
    imgtool.create(path, "1M")
    _write(path, 0, b"before")
    save_machine(path, "one", "two")
    first, second = imgtool.snapshots(path)
    assert min(first.vm_state_size, second.vm_state_size) > 0
    imgtool.create_snapshot(path, "plain")
    _write(path, 0, b"after!")
    imgtool.apply_snapshot(path, "two")
    assert _read(path, 0, 6) == b"before"
    imgtool.delete_snapshot(path, "one")
    imgtool.delete_snapshot(path, "plain")
    assert imgtool.snapshots(path) == [second]
    assert check(path)["exit"] == 0
    # QEMU must still be able to load the state that is left.
    save_machine(path, "three", load="two")
    imgtool.delete_snapshot(path, "two")
    imgtool.delete_snapshot(path, "three")
    assert check(path)["exit"] == 0
    assert _read(path, 0, 6) == b"before"
