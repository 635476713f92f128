"""Converting into an image that exists (``-n``): all of the source, and nothing but the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.errors import ImageError, InUse
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.ops.convert.disks import (
    KiB,
    MiB,
    assert_sound,
    content_of,
    disk,
    noise,
    reference,
    to,
    write_raw,
)

SIZE = 3 * MiB

#: The ends of the source: inside a sector's, a block's, a subcluster's and a cluster's worth.
SOURCE_SIZES = [0, 512, 64 * KiB + 512, MiB - 512, MiB + 512, MiB + 6 * KiB, 2 * MiB + 3 * KiB]

#: How the target's clusters are before: each decides otherwise about room for what is new.
TARGETS: dict[str, dict[str, object]] = {
    "v2": {"compat": "0.10"},
    "v3": {},
    "4k": {"cluster_size": "4k"},
    "2M": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on"},
    "refcount-1": {"refcount_bits": 1},
    "zstd": {"compression_type": "zstd"},
}
STATES = ("empty", "full", "snapshot", "zero", "compressed", "backed")


def source_content(size: int) -> bytes:
    """Noise with zeros in it, and noise at the very end."""
    content = bytearray(noise(size, 3))
    content[200 * KiB : 600 * KiB] = bytes(len(content[200 * KiB : 600 * KiB]))
    content[-4 * KiB : -KiB] = bytes(len(content[-4 * KiB : -KiB]))
    return bytes(content)


def make_target(path: Path, state: str, options: dict[str, object]) -> bytes:
    """A target in some state; returns what it holds."""
    old = noise(SIZE, 8)
    if state == "empty":
        referee.create(path, SIZE, options=options)
        return bytes(SIZE)
    if state == "backed":
        base = write_raw(path.parent / "base.raw", SIZE, (0, old))
        referee.create(path, SIZE, options=options, backing=base, backing_format="raw")
        return old
    raw = write_raw(path.parent / "old.raw", SIZE, (0, old))
    if state == "compressed":
        old = bytes(range(256)) * (SIZE // 256)
        write_raw(raw, SIZE, (0, old))
    referee.convert(
        raw, path, format="raw", to="qcow2", options=options, compress=state == "compressed"
    )
    if state == "snapshot":
        referee.must("qemu-img", "snapshot", "-c", "before", path)
    if state == "zero":
        referee.io(path, [f"write -z 0 {SIZE}"])
        return bytes(SIZE)
    return old


def check_snapshot(path: Path) -> None:
    assert referee.contents(path, "qcow2", path.parent, snapshot="before") == noise(SIZE, 8)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("geometry", TARGETS)
def test_into_a_larger_image(tmp_path: Path, geometry: str, state: str) -> None:
    options = TARGETS[geometry]
    if state == "snapshot" and geometry == "refcount-1":
        pytest.skip("no cluster can be shared where refcounts have one bit")
    if state == "zero" and geometry == "v2":
        pytest.skip("version 2 has no zero clusters")
    target = tmp_path / "target.qcow2"
    old = make_target(target, state, options)
    expected = bytearray(old)
    for number, size in enumerate(SOURCE_SIZES):
        content = source_content(size)
        source = write_raw(tmp_path / "source.raw", size, (0, content))
        to(target, source, create=False, compress=number % 2 == 1)
        expected[:size] = content
        assert content_of(target) == expected, size
    assert_sound(target, bytes(expected))
    if state == "snapshot":
        check_snapshot(target)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("size", SOURCE_SIZES)
def test_into_a_larger_raw_file(tmp_path: Path, size: int, offload: bool) -> None:
    content = source_content(size)
    source = write_raw(tmp_path / "source.raw", size, (0, content))
    target = write_raw(tmp_path / "target.raw", SIZE, (0, noise(SIZE, 8)))
    to(target, source, create=False, copy_offload=offload)
    assert target.read_bytes() == content + noise(SIZE, 8)[size:]


@pytest.mark.parametrize("state", STATES)
def test_offload_into_a_larger_image(tmp_path: Path, state: str) -> None:
    target = tmp_path / "target.qcow2"
    expected = bytearray(make_target(target, state, {}))
    for size in SOURCE_SIZES:
        content = source_content(size)
        source = write_raw(tmp_path / "source.raw", size, (0, content))
        to(target, source, create=False, copy_offload=True)
        expected[:size] = content
    assert_sound(target, bytes(expected))


def test_part_of_a_raw_file(tmp_path: Path) -> None:
    content = source_content(MiB)
    source = write_raw(tmp_path / "source.raw", MiB, (0, content))
    target = write_raw(tmp_path / "target.raw", SIZE, (0, noise(SIZE, 8)))
    to(
        target,
        source,
        create=False,
        target_options={"offset": 512 * 3, "size": MiB + 512},
    )
    expected = bytearray(noise(SIZE, 8))
    expected[512 * 3 : 512 * 3 + MiB] = content
    assert target.read_bytes() == expected


def test_data_file(tmp_path: Path) -> None:
    for name, raw in (("one", "off"), ("two", "on")):
        target, data = tmp_path / f"{name}.qcow2", tmp_path / f"{name}.raw"
        referee.create(target, SIZE, options={"data_file": data, "data_file_raw": raw})
        referee.io(target, [f"write -P 5 0 {SIZE}"])
        content = source_content(MiB + 512)
        source = write_raw(tmp_path / "source.raw", MiB + 512, (0, content))
        to(target, source, create=False)
        expected = content + b"\5" * (SIZE - len(content))
        assert_sound(target, expected)
        if raw == "on":
            assert data.read_bytes() == expected
        with pytest.raises(ImageError, match="data file"):
            to(target, source, create=False, compress=True)
        assert content_of(target) == expected


def test_target_is_zero_writes_no_zeros(tmp_path: Path) -> None:
    # The caller's word is taken: what the target held where the source has zeros stays.
    source = write_raw(tmp_path / "source.raw", 2 * MiB, (MiB, noise(MiB)))
    for target in (tmp_path / "target.raw", tmp_path / "target.qcow2"):
        if target.suffix == ".raw":
            write_raw(target, SIZE, (0, noise(SIZE, 8)))
        else:
            referee.create(target, SIZE)
            referee.io(target, [f"write -P 5 0 {SIZE}"])
        before = content_of(target)
        to(target, source, create=False, target_is_zero=True)
        assert content_of(target) == before[:MiB] + noise(MiB) + before[2 * MiB :]
        to(target, source, create=False)
        assert content_of(target) == disk(2 * MiB, (MiB, noise(MiB))) + before[2 * MiB :]


def test_zeros_give_room_back(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", SIZE)
    target = write_raw(tmp_path / "target.raw", SIZE, (0, noise(SIZE)))
    to(target, source, create=False)
    assert target.stat().st_blocks == 0
    assert target.read_bytes() == bytes(SIZE)


def test_into_memory() -> None:
    store = MemoryStorage(noise(SIZE))
    content = source_content(MiB)
    to(store, reference(MemoryStorage(content), "raw"), format="raw", create=False)
    assert store.getvalue() == content + noise(SIZE)[MiB:]


def test_smaller_target_is_refused_untouched(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", 2 * MiB, (0, noise(2 * MiB)))
    raw = write_raw(tmp_path / "target.raw", MiB, (0, noise(MiB, 4)))
    image = tmp_path / "target.qcow2"
    referee.create(image, MiB)
    for target in (raw, image):
        before = target.read_bytes()
        with pytest.raises(ImageError, match="smaller"):
            to(target, source, create=False)
        assert target.read_bytes() == before


def test_missing_target_is_not_made(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", MiB)
    target = tmp_path / "target.raw"
    with pytest.raises(FileNotFoundError):
        to(target, source, create=False)
    assert not target.exists()


def test_source_itself_is_refused(tmp_path: Path) -> None:
    image = write_raw(tmp_path / "image.raw", MiB, (0, noise(MiB)))
    with pytest.raises(InUse):
        to(image, image, create=False)
    assert image.read_bytes() == noise(MiB)


def test_own_backing_image_is_refused(tmp_path: Path) -> None:
    base = write_raw(tmp_path / "base.raw", MiB, (0, noise(MiB)))
    image = tmp_path / "image.qcow2"
    referee.create(image, MiB, backing=base, backing_format="raw")
    with pytest.raises(InUse):
        to(base, image, create=False)
    assert base.read_bytes() == noise(MiB)
