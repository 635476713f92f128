"""Changes that fail or are broken off half-way: memory must not spoil what is on disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool import BlockDevice, ImageError
from imgtool.formats.qcow2.allocator import Allocator
from imgtool.formats.qcow2.writable import WritableQcow2
from imgtool.storage.file import FileStorage
from tests.kit import referee
from tests.kit.disks import open_disk
from tests.kit.faults import FailingStorage, nth

SIZE = 8 << 20
DATA = b"\x5a" * (256 << 10)


def failing(path: Path, *kinds: str) -> tuple[BlockDevice, dict[str, int]]:
    """A disk whose file fails, in calls of these kinds, while ``calls['now']`` is set to an errno.

    With ``calls['skip']`` so many calls go well first.
    """
    calls = {"now": 0, "skip": 0}

    def fails(what: str, offset: int, length: int) -> int:
        if what not in kinds or not calls["now"]:
            return 0
        calls["skip"] -= 1
        return calls["now"] if calls["skip"] < 0 else 0

    storage = FailingStorage(FileStorage.open(path, writable=True), fails)
    return open_disk(storage, writable=True), calls


def assert_sound(path: Path) -> None:
    assert imgtool.check(path).corruptions == 0
    assert referee.check(path).get("corruptions", 0) == 0


def write_until(disk: WritableQcow2, done: Callable[[], object]) -> list[int]:
    """Write, and try again once where that fails; return what was acknowledged."""
    written: list[int] = []
    for offset in range(0, disk.size, len(DATA)):
        for _ in range(2):
            try:
                disk.write_at(offset, DATA)
                disk.flush()
            except OSError:
                continue
            written.append(offset)
            break
        if done():
            return written
    raise AssertionError("it never came to that")


def small_table(path: Path) -> None:
    """With clusters of 512 bytes and wide refcounts the refcount table soon has to move."""
    imgtool.create(path, SIZE, cluster_size=512, refcount_bits=64)
    imgtool.resize(path, 16 * SIZE)


def assert_holds(path: Path, written: list[int]) -> None:
    assert_sound(path)
    with imgtool.open(path) as disk:
        for offset in written:
            assert disk.read_at(offset, len(DATA)) == DATA


def test_a_header_that_could_not_name_the_new_refcount_table(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    small_table(path)
    failures: list[int] = []

    def fails(what: str, offset: int, length: int) -> int:
        if what == "write" and offset == 0 and not failures:
            failures.append(errno.EIO)
            return errno.EIO
        return 0

    storage = FailingStorage(FileStorage.open(path, writable=True), fails)
    with open_disk(storage, writable=True) as disk:
        assert isinstance(disk, WritableQcow2)
        written = write_until(disk, lambda: failures)
    assert_holds(path, written)


def test_a_refcount_table_that_could_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.qcow2"
    small_table(path)
    real = Allocator.take_region
    failures: list[int] = []

    def fail_once(self: Allocator, *arguments: int, **options: int) -> int:
        if not failures:
            failures.append(errno.EIO)
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments, **options)

    with imgtool.open(path, writable=True) as disk:
        assert isinstance(disk, WritableQcow2)
        monkeypatch.setattr(Allocator, "take_region", fail_once)
        place = disk.header.refcount_table_offset
        written = write_until(disk, lambda: disk.header.refcount_table_offset != place)  # type: ignore[attr-defined]
    assert failures
    assert_holds(path, written)


@pytest.mark.parametrize("skip", range(6))
def test_a_bitmap_goes_on_after_its_directory_could_not_be_written(
    tmp_path: Path, skip: int
) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    imgtool.bitmap(path, "b", "add", granularity=65536)
    disk, calls = failing(path, "write")
    calls["now"], calls["skip"] = 5, skip
    for _ in range(2):
        try:
            disk.write_at(0, b"x" * 512)
            break
        except OSError:
            calls["now"] = 0
    calls["now"] = 0
    disk.write_at(512 << 10, b"y" * 512)
    disk.close()
    found = list(imgtool.dirty_ranges(path, "b"))
    assert (0, 65536) in found
    assert (512 << 10, 65536) in found
    assert_sound(path)


def test_ctrl_c_in_a_change_leaves_what_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    disk = imgtool.open(path, writable=True)
    assert isinstance(disk, WritableQcow2)
    disk.write_at(0, b"a" * 65536)
    disk.flush()

    def broken_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(disk.clusters, "link", broken_off)
        with pytest.raises(KeyboardInterrupt):
            disk.write_at(65536, b"b" * 65536)
    for call in (disk.flush, lambda: disk.write_at(0, b"x"), lambda: disk.create_snapshot("s")):
        with pytest.raises(ImageError, match="broken off") as caught:
            call()
        assert caught.value.filename == str(path)
    assert disk.read_at(0, 65536) == b"a" * 65536
    # Whoever lets Ctrl-C pass is to know that what he wrote before is not there, either.
    with pytest.raises(ImageError, match="broken off"):
        disk.close()
    disk.close()
    # Data that nothing refers to may have been written, and nothing else.
    assert path.read_bytes()[: len(before)] == before
    assert_sound(path)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(65536, b"c" * 65536)
    assert_sound(path)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("options", [{}, {"extended_l2": True, "cluster_size": 16384}])
def test_what_could_not_be_written_is_given_back(
    tmp_path: Path, options: dict[str, object], goes_on: bool
) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M", **options)  # type: ignore[arg-type]
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"a" * 512)
    disk, calls = failing(path, "write")
    calls["now"] = 28
    for offset in (100_000, 300_000, 500_000):
        with pytest.raises(OSError, match="No space left"):
            disk.write_at(offset, b"b" * 1000)
    calls["now"] = 0
    if goes_on:
        disk.write_at(700_000, b"c" * 1000)
    disk.close()
    assert imgtool.check(path).clean
    assert referee.check(path)["exit"] == 0


def test_close_closes_everything_whatever_fails(tmp_path: Path) -> None:
    class Stuck(FailingStorage):
        def close(self) -> None:
            super().close()
            raise OSError(5, "Input/output error", self.name)

    path = tmp_path / "a.qcow2"
    imgtool.create(tmp_path / "base.raw", "1M")
    imgtool.create(path, backing_file="base.raw", backing_format="raw")
    storage = Stuck(FileStorage.open(path, writable=True), nth(0))
    disk = open_disk(storage, writable=True)
    with pytest.raises(OSError, match="Input/output error"):
        disk.close()
    for name in ("a.qcow2", "base.raw"):
        FileStorage.open(tmp_path / name, writable=True).close()
