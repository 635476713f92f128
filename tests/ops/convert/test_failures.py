"""Conversions that fail half-way: what is told, and what is left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imgtool.errors import ImageError, InUse
from imgtool.ops.create import create
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.kit.disks import ANY, open_disk
from tests.kit.faults import FailingStorage, bad_ranges, nth
from tests.kit.hosts import small_disk
from tests.ops.convert.disks import (
    GiB,
    KiB,
    MiB,
    assert_sound,
    content_of,
    noise,
    reference,
    to,
    write_raw,
)

SIZE = 8 * MiB
OLD = b"somebody's file " * 100


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread runs on, and no file stays open."""
    descriptors = set(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())
    yield
    gc.collect()
    assert not {thread.name for thread in set(threading.enumerate()) - threads}
    left = {
        os.readlink(f"/proc/self/fd/{number}")
        for number in set(os.listdir("/proc/self/fd")) - descriptors
        if os.path.exists(f"/proc/self/fd/{number}")
    }
    assert not {name for name in left if "/proc/" not in name}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two windows full of noise."""
    return write_raw(tmp_path / "source.raw", SIZE, (0, noise(SIZE)))


def let_files_fail(patch: pytest.MonkeyPatch, fails: Callable[[str, int, int], int]) -> None:
    """Every file that is made, or opened for writing, from now on fails as ``fails`` says."""
    for name in ("create", "open"):
        made = getattr(FileStorage, name).__func__

        def wrapped(cls: Any, path: Any, made: Any = made, **options: Any) -> Storage:
            storage: Storage = made(cls, path, **options)
            return storage if storage.read_only else FailingStorage(storage, fails)

        patch.setattr(FileStorage, name, classmethod(wrapped))


TARGETS: dict[str, dict[str, Any]] = {
    "raw": {},
    "plain": {},
    "compressed": {"compress": True},
    "metadata": {"options": {"preallocation": "metadata"}},
    "data-file": {"options": {"data_file": "data.bin"}},
    "offload": {"copy_offload": True},
}


def target_of(folder: Path, name: str) -> Path:
    return folder / ("target.raw" if name == "raw" else "target.qcow2")


# Reading fails


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("place", [0, 3 * MiB + 5000, SIZE - 512])
def test_source_cannot_be_read(tmp_path: Path, name: str, place: int) -> None:
    bad = FailingStorage(MemoryStorage(noise(SIZE)), bad_ranges((place, 512)))
    target = target_of(tmp_path, name)
    with pytest.raises(ImageError, match="Input/output error") as caught:
        to(target, reference(bad, "raw"), **TARGETS[name])
    # It is told which file it was, and where in the disk, but for the piece that was read.
    assert caught.value.filename == "<memory>"
    assert re.fullmatch(r"error while reading at byte \d+: Input/output error", caught.value.reason)
    assert list(tmp_path.iterdir()) == []


def damage(image: Path) -> None:
    """Make the cluster at 6,553,600 bytes a compressed one that cannot be."""
    with image.open("r+b") as file:
        data = file.read()
        l1 = int.from_bytes(data[40:48], "big")
        l2 = int.from_bytes(data[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00
        file.seek(l2 + 8 * 100)
        file.write((1 << 62 | 7).to_bytes(8, "big"))


def test_source_that_is_damaged(tmp_path: Path, source: Path) -> None:
    image = tmp_path / "image.qcow2"
    to(image, source)
    damage(image)
    for suffix in ("raw", "qcow2"):
        target = tmp_path / f"target.{suffix}"
        with pytest.raises(ImageError, match=r"reading at byte 6553600") as caught:
            to(target, image)
        assert caught.value.filename == str(image)
        assert str(image) not in caught.value.reason
        assert not target.exists()


def test_base_that_cannot_be_read(tmp_path: Path, source: Path) -> None:
    base = tmp_path / "base.qcow2"
    write_raw(tmp_path / "other.raw", SIZE, (0, noise(SIZE, 5)))
    to(base, tmp_path / "other.raw", compress=False)
    damage(base)
    target = tmp_path / "target.qcow2"
    with pytest.raises(ImageError):
        to(target, source, backing="base.qcow2", backing_format="qcow2")
    assert not target.exists()


def test_offloaded_copy_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel copies nothing here, and then reading fails on the threads that write.
    bad = FailingStorage(MemoryStorage(noise(SIZE)), bad_ranges((5 * MiB, 512)))
    target = tmp_path / "target.raw"
    with pytest.raises(ImageError, match="reading at byte"):
        to(target, reference(bad, "raw"), copy_offload=True)
    assert not target.exists()


# Writing fails


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", TARGETS)
def test_target_cannot_be_written(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    existing: bool,
) -> None:
    target = target_of(tmp_path, name)
    if existing:
        target.write_bytes(OLD)
    fails = nth(2, "write", "zero", "truncate", "preallocate", number=number, for_ever=True)
    let_files_fail(monkeypatch, fails)
    with pytest.raises((ImageError, OSError), match=os.strerror(number)):
        to(target, source, **TARGETS[name])
    # What this run made is gone; what was there is empty, since it had been begun to overwrite.
    if existing:
        assert target.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} == {"source.raw"} | (
        {target.name} if existing else set()
    )


@pytest.mark.parametrize("name", TARGETS)
def test_every_call_that_can_fail(tmp_path: Path, name: str) -> None:
    source = write_raw(tmp_path / "source.raw", 3 * MiB, (0, noise(100)), (2 * MiB, noise(100)))
    target = target_of(tmp_path, name)
    for call in range(100):
        fails = nth(call, "write", "zero", "truncate", "preallocate", "flush")
        with pytest.MonkeyPatch.context() as patch:
            let_files_fail(patch, fails)
            arguments = {"target_cache": "writeback", "workers": 1, **TARGETS[name]}
            failed = False
            try:
                to(target, source, **arguments)
            except (ImageError, OSError):
                failed = True
        if not failed:
            assert call > 2
            assert content_of(target) == source.read_bytes()
            return
        assert {path.name for path in tmp_path.iterdir()} == {"source.raw"}
    raise AssertionError("it never succeeded")


def test_memory_that_is_full(source: Path) -> None:
    for wanted in ("raw", "qcow2"):
        store = MemoryStorage(limit=3 * MiB)
        with pytest.raises((ImageError, OSError), match="No space left"):
            to(store, source, format=wanted)
        assert not store.getvalue().startswith(b"QFI\xfb")


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "offload"])
def test_a_disk_that_is_full(tmp_path: Path, source: Path, name: str) -> None:
    with small_disk(tmp_path / "disk", 4 * MiB) as folder:
        target = target_of(folder, name)
        with pytest.raises((ImageError, OSError), match="No space left"):
            to(target, source, check_space=False, **TARGETS[name])
        assert list(folder.iterdir()) == []
        # Before anything is touched, if it may look.
        target.write_bytes(OLD)
        if name not in ("compressed", "data-file"):
            with pytest.raises(ImageError, match="Not enough space"):
                to(target, source, **TARGETS[name])
            assert target.read_bytes() == OLD


def test_an_image_that_exists_stays_whole(tmp_path: Path, source: Path) -> None:
    # Without room for the new data, what is in the image remains, and nothing leaks.
    with small_disk(tmp_path / "disk", 4 * MiB) as folder:
        target = folder / "target.qcow2"
        referee.create(target, SIZE)
        referee.io(target, ["write -P 3 7M 1M"])
        with pytest.raises((ImageError, OSError), match="No space left"):
            to(target, source, create=False)
        found = referee.check(target)
        assert found.get("corruptions", 0) == 0
        assert content_of(target)[7 * MiB :] == b"\3" * MiB


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_writing_into_an_image_fails(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target = tmp_path / "target.qcow2"
    create(target, SIZE, format="qcow2")
    with open_disk(target, policy=ANY, writable=True) as device:
        device.write_at(5, b"before")
    let_files_fail(monkeypatch, nth(1, kind, for_ever=True))
    with pytest.raises((ImageError, OSError), match="Input/output"):
        to(target, source, create=False, target_cache="writeback")
    found = referee.check(target)
    assert found.get("corruptions", 0) == 0, found


# The caller breaks it off


def test_progress_breaks_it_off(tmp_path: Path, source: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 2 * MiB:
            raise KeyboardInterrupt

    for suffix in ("raw", "qcow2"):
        target = tmp_path / f"target.{suffix}"
        with pytest.raises(KeyboardInterrupt):
            to(target, source, progress=stop)
        assert not target.exists()


# Room


@pytest.mark.skipif(os.name != "posix", reason="replaces an open file")
@pytest.mark.parametrize("existing", [False, True])
def test_what_took_the_target_s_name_is_not_taken_back(
    tmp_path: Path, source: Path, existing: bool
) -> None:
    target, other = tmp_path / "target.qcow2", tmp_path / "other"
    if existing:
        target.write_bytes(OLD)

    def replace(done: int, total: int) -> None:
        other.write_bytes(OLD)
        os.replace(other, target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to(target, source, progress=replace)
    assert target.read_bytes() == OLD


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such locks")
def test_a_target_is_taken_back_while_it_is_locked(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment later it could be somebody else's who found it and began anew."""
    target = tmp_path / "target.qcow2"

    def unlink(name: str) -> None:
        with pytest.raises(InUse):
            FileStorage.open(name, writable=True)
        taken.append(name)
        os.remove(name)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    taken: list[str] = []
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        to(target, source, progress=stop)
    assert taken == [str(target)]
    assert not target.exists()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_what_a_link_names_is_taken_back(tmp_path: Path, source: Path) -> None:
    link, made = tmp_path / "link.qcow2", tmp_path / "made.qcow2"
    link.symlink_to(made)

    def stop(done: int, total: int) -> None:
        assert made.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to(link, source, progress=stop)
    assert link.is_symlink()
    assert not made.exists()


@pytest.mark.parametrize("kind", ["folder", "nowhere", "locked"])
@pytest.mark.parametrize("image_first", [False, True])
def test_neither_file_is_emptied_for_want_of_the_other(
    tmp_path: Path, kind: str, image_first: bool
) -> None:
    """An image and its data file, of which one exists, and the other cannot be made."""
    image, data = tmp_path / "image.qcow2", tmp_path / "data"
    there, missing = (image, data) if image_first else (data, image)
    there.write_bytes(OLD)
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            missing.mkdir()
        elif kind == "locked":
            missing.write_bytes(OLD)
            stack.enter_context(FileStorage.open(missing, writable=True))
        elif image_first:
            data = tmp_path / "nowhere" / "data"
        else:
            image = tmp_path / "nowhere" / "image.qcow2"
        with pytest.raises((ImageError, OSError)):
            create(image, MiB, format="qcow2", options={"data_file": str(data)})
    assert there.read_bytes() == OLD


def free(monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    """Let the host have ``amount`` bytes free."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=amount))


@pytest.mark.parametrize("existing", [False, True])
def test_too_little_room(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    for suffix, needed in (("raw", SIZE), ("qcow2", SIZE + 5 * 64 * KiB)):
        target = tmp_path / f"target.{suffix}"
        if existing:
            target.write_bytes(OLD)
        stored = target.stat().st_blocks * 512 if existing else 0
        free(monkeypatch, needed - 1 - stored)
        with pytest.raises(ImageError) as caught:
            to(target, source)
        assert caught.value.filename == str(target)
        for figure in (f"({needed} bytes)", f"({needed - 1} bytes)", "8", "--no-space-check"):
            assert figure in caught.value.reason
        assert target.exists() == existing
        if existing:
            assert target.read_bytes() == OLD
        to(target, source, check_space=False)
        target.unlink()
        free(monkeypatch, needed)
        to(target, source)
        assert content_of(target) == noise(SIZE)


def test_room_for_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Holes need next to nothing, unless they are to be written.
    source = write_raw(tmp_path / "source.raw", 64 * GiB, (5 * GiB, noise(MiB)))
    free(monkeypatch, 30 * MiB)
    for suffix in ("raw", "qcow2"):
        target = tmp_path / f"target.{suffix}"
        to(target, source)
        for arguments in ({"sparse_size": 0}, {"options": {"preallocation": "falloc"}}):
            before = target.stat()
            with pytest.raises(ImageError, match=r"64 GiB.*3[012].* MiB"):
                to(target, source, **arguments)
            assert target.stat() == before
    to(tmp_path / "thin.qcow2", source, options={"preallocation": "metadata"})


def test_room_over_a_backing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_raw(tmp_path / "base.raw", SIZE, (0, noise(SIZE)))
    overlay = tmp_path / "overlay.qcow2"
    referee.create(overlay, SIZE, backing=base, backing_format="raw")
    referee.io(overlay, ["write -P 1 0 64k"])
    free(monkeypatch, MiB)
    target = tmp_path / "target.qcow2"
    to(target, overlay, backing="base.raw", backing_format="raw")
    with pytest.raises(ImageError, match="Not enough space"):
        to(tmp_path / "flat.qcow2", overlay)


def test_no_room_is_asked_for_what_is_there(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_raw(tmp_path / "target.raw", SIZE, (0, noise(SIZE, 1)))
    free(monkeypatch, 0)
    to(target, source, create=False)
    # The old file's blocks are free once it is overwritten.
    to(target, source)
    assert target.read_bytes() == noise(SIZE)


# Nothing keeps what was made


def test_success_leaves_nothing_open(tmp_path: Path, source: Path) -> None:
    base = write_raw(tmp_path / "base.raw", MiB)
    for arguments in (
        {},
        {"compress": True},
        {"options": {"data_file": "data.bin"}},
        {"backing": base.name, "backing_format": "raw"},
        {"target_cache": "none"},
    ):
        target = tmp_path / "target.qcow2"
        to(target, source, **arguments)  # type: ignore[arg-type]
        target.unlink()
    to(tmp_path / "target.qcow2", source)
    to(tmp_path / "target.qcow2", source, create=False)
    assert_sound(tmp_path / "target.qcow2", noise(SIZE))
