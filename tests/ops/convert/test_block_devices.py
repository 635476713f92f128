"""Converting from and to block devices, which keep their size and what was on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.errors import BadOption, ImageError
from tests.kit import referee
from tests.kit.hosts import loop_device
from tests.ops.convert.disks import KiB, MiB, content_of, disk, noise, reference, to, write_raw

DEVICE = 8 * MiB
OLD = noise(DEVICE, 11)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 8 MiB, full of old bytes."""
    file = tmp_path / "device.img"
    file.write_bytes(OLD)
    with loop_device(file) as found:
        yield found


@pytest.fixture
def used(tmp_path: Path, device: Path) -> Path:
    """The block device with a qcow2 image on it."""
    raw = write_raw(tmp_path / "old.raw", 3 * MiB, (0, noise(3 * MiB, 12)))
    old = tmp_path / "old.qcow2"
    referee.convert(raw, old, format="raw", to="qcow2")
    with device.open("r+b") as file:
        file.write(old.read_bytes())
    return device


def content(size: int) -> bytes:
    return disk(size, (0, noise(100 * KiB)), (MiB, noise(300 * KiB, 2)), (size - 700, noise(700)))


@pytest.mark.parametrize("offload", [False, True])
def test_raw_onto_a_device(tmp_path: Path, device: Path, offload: bool) -> None:
    size = 5 * MiB + 512
    source = write_raw(
        tmp_path / "source.raw",
        size,
        (0, noise(100 * KiB)),
        (MiB, noise(300 * KiB, 2)),
        (size - 700, noise(700)),
    )
    assert source.read_bytes() == content(size)
    before = content_of(device, "raw")
    to(device, source, format="raw", copy_offload=offload)
    # Zeros are written too, for the device held something else; what lies behind stays.
    assert content_of(device, "raw") == content(size) + before[size:]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "0.10"},
        {"cluster_size": 512},
        {"extended_l2": "on"},
        {"preallocation": "metadata"},
        {"refcount_bits": 64},
    ],
    ids=str,
)
def test_qcow2_onto_a_device(tmp_path: Path, device: Path, options: dict[str, object]) -> None:
    size = 5 * MiB + 512
    source = write_raw(tmp_path / "source.raw", size, (0, content(size)))
    for compress in (False, True):
        if compress and "preallocation" in options:
            continue
        to(device, source, format="qcow2", options=options, compress=compress)
        assert content_of(device, "qcow2") == content(size)
        found = referee.check(device)
        assert found["exit"] == 0, found
        back = tmp_path / "back.raw"
        referee.convert(device, back, format="qcow2")
        assert back.read_bytes() == content(size)


def test_from_a_device(tmp_path: Path, used: Path) -> None:
    for suffix in ("raw", "qcow2"):
        target = tmp_path / f"target.{suffix}"
        to(target, reference(used, "raw"))
        assert content_of(target) == content_of(used, "raw")
        to(target, reference(used, "qcow2"))
        assert content_of(target) == noise(3 * MiB, 12)


def test_from_device_to_device(tmp_path: Path, device: Path) -> None:
    file = write_raw(tmp_path / "other.img", DEVICE + MiB, (0, b"\xee" * (DEVICE + MiB)))
    with loop_device(file) as other:
        to(other, reference(device, "raw"), format="raw")
        assert content_of(other, "raw") == content_of(device, "raw") + b"\xee" * MiB
        with pytest.raises(BadOption):
            to(device, reference(device, "raw"), format="raw")


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_too_small_a_device(tmp_path: Path, used: Path, format: str) -> None:
    source = write_raw(tmp_path / "source.raw", 9 * MiB, (0, noise(9 * MiB)))
    with pytest.raises((ImageError, OSError), match=r"smaller|space"):
        to(used, source, format=format)
    assert os.path.exists(used)
    # What was there does not pass for an image any more, nor does what was begun.
    if format == "qcow2":
        assert not referee.opens(used)


def test_a_failed_copy_leaves_no_old_image(tmp_path: Path, used: Path) -> None:
    assert referee.opens(used)
    base = write_raw(tmp_path / "base.raw", 4 * MiB, (0, noise(4 * MiB)))
    broken = tmp_path / "broken.qcow2"
    referee.convert(base, broken, format="raw", to="qcow2")
    with broken.open("r+b") as file:
        data = bytearray(file.read())
        l1 = int.from_bytes(data[40:48], "big")
        l2 = int.from_bytes(data[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00
        # Cluster 50 lies at an offset that no cluster can have.
        file.seek(l2 + 8 * 50)
        file.write((1 << 63 | 65536 * 20 + 512).to_bytes(8, "big"))
    with pytest.raises(ImageError):
        to(used, broken, format="qcow2")
    assert not referee.opens(used)


def test_into_a_device_as_it_is(tmp_path: Path, device: Path) -> None:
    source = write_raw(tmp_path / "source.raw", MiB, (0, noise(MiB, 5)))
    before = content_of(device, "raw")
    to(device, source, format="raw", create=False)
    assert content_of(device, "raw") == noise(MiB, 5) + before[MiB:]


def test_data_file_on_a_device(tmp_path: Path, device: Path) -> None:
    size = 5 * MiB + 512
    source = write_raw(tmp_path / "source.raw", size, (0, content(size)))
    for raw in ("off", "on"):
        target = tmp_path / "target.qcow2"
        to(target, source, options={"data_file": str(device), "data_file_raw": raw})
        assert content_of(target) == content(size)
        if raw == "on":
            assert content_of(device, "raw")[:size] == content(size)
