"""What convert refuses, and that it does so before it touches anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgtool.chain import Opener, Reference
from imgtool.errors import BadOption, ImageError, InUse, WrongFormat
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.kit.disks import ANY
from tests.ops.convert.disks import KiB, MiB, content_of, noise, reference, to, write_raw

OLD = b"what was there before, " * 1000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A raw disk."""
    return write_raw(tmp_path / "source.raw", MiB, (0, noise(MiB)))


@pytest.fixture(params=["new", "existing"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the image is to be, with and without a file in its place."""
    path = tmp_path / "target.qcow2"
    if request.param == "existing":
        path.write_bytes(OLD)
    return path


def state(target: Path) -> bytes | None:
    """What is in the target, None if it does not exist."""
    return target.read_bytes() if target.exists() else None


BAD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "unknown option": {"options": {"bogus": "1"}},
    "cluster size": {"options": {"cluster_size": "1000"}},
    "refcount width": {"options": {"refcount_bits": 3}},
    "version": {"options": {"compat": "0.9"}},
    "version 2 and zstd": {"options": {"compat": "0.10", "compression_type": "zstd"}},
    "extended and small": {"options": {"extended_l2": "on", "cluster_size": "8k"}},
    "raw data without a data file": {"options": {"data_file_raw": "on"}},
    "preallocation": {"options": {"preallocation": "some"}},
    "compressed data file": {"compress": True, "options": {"data_file": "data.raw"}},
    "zlib level": {"compress": True, "compression_level": 10},
    "zstd level": {
        "compress": True,
        "compression_level": 0,
        "options": {"compression_type": "zstd"},
    },
    "offloaded compression": {"compress": True, "copy_offload": True},
    "sparse size": {"sparse_size": 100},
    "negative sparse size": {"sparse_size": -512},
    "no such backing": {"backing": "none.raw", "backing_format": "raw"},
    "backing without format": {"backing": "source.raw"},
    "backing of another format": {"backing": "source.raw", "backing_format": "qcow2"},
    "own backing": {"backing": "target.qcow2", "backing_format": "raw"},
    "own data file": {"options": {"data_file": "target.qcow2"}},
    "too long a name": {"backing": "x" * 1100, "backing_format": "raw"},
    "cache": {"target_cache": "bogus"},
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(source: Path, target: Path, name: str) -> None:
    before = state(target)
    with pytest.raises((ImageError, OSError)):
        to(target, source, **BAD_ARGUMENTS[name])
    assert state(target) == before
    assert not (target.parent / "data.raw").exists()


def test_bad_sources(tmp_path: Path, target: Path, source: Path) -> None:
    before = state(target)
    broken = tmp_path / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(600))
    for sources in (
        [reference(tmp_path / "none.raw")],
        [reference(source, "qcow2")],
        [reference(broken)],
        [reference(source), reference(broken)],
        [reference(tmp_path, "raw")],
        [reference(source, "raw", snapshot="x")],
        [reference(source, "raw", offset=2 * MiB)],
        [reference(source, "nonsense")],
        [],
    ):
        with pytest.raises((ImageError, OSError)):
            to(target, *sources)
        assert state(target) == before


def test_unknown_target_format(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    with pytest.raises(BadOption, match="Unknown format"):
        to(target, source, format="nonsense")
    assert not target.exists()


def test_raw_takes_no_compression(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="Compression"):
        to(tmp_path / "target.raw", source, compress=True)
    with pytest.raises(BadOption, match="Backing"):
        to(tmp_path / "target.raw", source, backing="source.raw", backing_format="raw")
    assert not (tmp_path / "target.raw").exists()


def test_nowhere_to_put_it(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        to(tmp_path / "no" / "such" / "target.raw", source)
    with pytest.raises(ImageError, match="directory"):
        to(tmp_path, source, format="raw")


@pytest.mark.parametrize("share", [False, True])
def test_target_is_its_own_source(tmp_path: Path, source: Path, share: bool) -> None:
    opener = Opener(policy=ANY, share=share)
    image = tmp_path / "image.qcow2"
    to(image, source)
    link = tmp_path / "link.raw"
    link.symlink_to(source)
    hard = tmp_path / "hard.raw"
    hard.hardlink_to(source)
    for target in (source, link, hard):
        with pytest.raises((BadOption, InUse)):
            to(target, source, opener=opener)
        with pytest.raises((BadOption, InUse)):
            to(target, image, source, opener=opener)
        assert source.read_bytes() == noise(MiB)


@pytest.mark.parametrize("share", [False, True])
def test_target_is_below_its_source(tmp_path: Path, source: Path, share: bool) -> None:
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    referee.create(middle, MiB, backing=source, backing_format="raw")
    referee.create(top, MiB, backing=middle, backing_format="qcow2")
    before = middle.read_bytes()
    for target in (source, middle, top):
        with pytest.raises((BadOption, InUse)):
            to(target, top, format="raw", opener=Opener(policy=ANY, share=share))
    assert source.read_bytes() == noise(MiB)
    assert middle.read_bytes() == before


@pytest.mark.parametrize("share", [False, True])
def test_data_file_is_being_read(tmp_path: Path, source: Path, share: bool) -> None:
    opener = Opener(policy=ANY, share=share)
    target = tmp_path / "target.qcow2"
    with pytest.raises((BadOption, InUse)):
        to(target, source, options={"data_file": "source.raw"}, opener=opener)
    assert source.read_bytes() == noise(MiB)
    # The source's own data file, and one below the new image.
    with_data = tmp_path / "with-data.qcow2"
    to(with_data, source, options={"data_file": "data.raw"})
    with pytest.raises((BadOption, InUse)):
        to(target, with_data, options={"data_file": "data.raw"}, opener=opener)
    with pytest.raises((BadOption, InUse)):
        to(tmp_path / "data.raw", with_data, opener=opener)
    overlay = tmp_path / "overlay.qcow2"
    referee.create(overlay, MiB, backing=with_data, backing_format="qcow2")
    with pytest.raises((BadOption, InUse)):
        to(
            target,
            source,
            backing="overlay.qcow2",
            backing_format="qcow2",
            options={"data_file": "data.raw"},
            opener=opener,
        )
    assert content_of(with_data) == noise(MiB)
    assert not target.exists()


def test_memory_that_is_not_empty(source: Path) -> None:
    store = MemoryStorage(b"x")
    with pytest.raises(BadOption, match="empty"):
        to(store, source, format="raw")
    assert store.getvalue() == b"x"


def test_file_objects_that_hold_something_are_no_new_images(source: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"what somebody may need")
        with pytest.raises(BadOption):
            to(file, source, format="raw")
        file.seek(0)
        assert file.read() == b"what somebody may need"


def test_target_in_use(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target.qcow2"
    to(target, source)
    before = target.read_bytes()
    with (
        Opener(policy=ANY).reference(Reference(target, "qcow2")),
        pytest.raises(InUse),
    ):
        to(target, source)
    assert target.read_bytes() == before


def test_compressing_into_what_cannot(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target.qcow2"
    to(target, source)
    before = target.read_bytes()
    with pytest.raises(BadOption, match="level"):
        to(target, source, create=False, compress=True, compression_level=11)
    with pytest.raises(WrongFormat):
        to(source, target, format="qcow2", create=False)
    assert target.read_bytes() == before


def test_size_is_the_source_s(tmp_path: Path, source: Path) -> None:
    # As qemu-img has it, -o size says nothing here.
    for size in ("64k", "8M"):
        for suffix in ("raw", "qcow2"):
            target = tmp_path / f"target.{suffix}"
            to(target, source, options={"size": size})
            assert content_of(target) == noise(MiB)


def test_an_odd_size_is_rounded_up(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(noise(100 * KiB + 7))
    for suffix in ("raw", "qcow2"):
        target = tmp_path / f"target.{suffix}"
        to(target, source)
        assert content_of(target) == noise(100 * KiB + 7) + bytes(505)
