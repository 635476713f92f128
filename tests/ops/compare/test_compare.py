"""The compare operation, against disks that are told apart byte by byte."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import imgtool
from imgtool.chain import Reference
from imgtool.device import BlockDevice
from imgtool.errors import CorruptImage
from imgtool.extent import Extent, Kind
from imgtool.formats.raw.driver import RawDevice
from imgtool.ops.compare import (
    Difference,
    UnknownAllocation,
    Unreadable,
    compare,
    compare_devices,
)
from imgtool.storage.memory import MemoryStorage

MIB = 1 << 20


def disk(content: bytes) -> RawDevice:
    return RawDevice(MemoryStorage(content))


def truth(one: bytes, other: bytes) -> int | None:
    size = max(len(one), len(other))
    one, other = one.ljust(size, b"\0"), other.ljust(size, b"\0")
    for offset in range(0, size, 512):
        if one[offset : offset + 512] != other[offset : offset + 512]:
            return offset
    return None


@pytest.mark.parametrize("seed", range(30))
def test_first_sector_that_differs(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.choice((512, 5 << 10, MIB, 3 * MIB + 512))
    one = bytearray(chance.randbytes(size) if chance.random() < 0.5 else bytes(size))
    other = bytearray(one)
    for _ in range(chance.randrange(4)):
        other[chance.randrange(size)] ^= 1 << chance.randrange(8)
    if chance.random() < 0.3:
        other += bytes(MIB)
    if chance.random() < 0.3:
        other += chance.randbytes(512)
    for first, second in ((one, other), (other, one)):
        found = compare_devices(disk(bytes(first)), disk(bytes(second)))
        assert found.offset == truth(bytes(one), bytes(other))
        assert found.identical == (found.offset is None)
        assert found.sizes == (len(first), len(second))


@pytest.mark.parametrize("place", [0, 1, 511, 512, MIB - 1, MIB, MIB + 1, 2 * MIB - 1])
def test_every_end_of_a_window(place: int) -> None:
    one = random.Random(1).randbytes(2 * MIB)
    other = bytearray(one)
    other[place] ^= 0x80
    assert compare_devices(disk(one), disk(bytes(other))).offset == place & ~511
    zeros = bytearray(2 * MIB)
    zeros[place] = 1
    assert compare_devices(disk(bytes(2 * MIB)), disk(bytes(zeros))).offset == place & ~511


def test_progress() -> None:
    steps: list[tuple[int, int]] = []
    one = random.Random(1).randbytes(5 * MIB)
    found = compare_devices(disk(one), disk(one), progress=lambda *step: steps.append(step))
    assert found.identical
    assert steps[-1] == (5 * MIB, 5 * MIB)
    assert steps == sorted(steps)


def test_strict() -> None:
    same = compare_devices(disk(bytes(512)), disk(bytes(512)), strict=True)
    assert same.identical
    sizes = compare_devices(disk(bytes(512)), disk(bytes(1024)), strict=True)
    assert (sizes.difference, sizes.offset) == (Difference.SIZE, None)


def test_strict_allocation(tmp_path: Path) -> None:
    for name in ("a", "b"):
        imgtool.create(tmp_path / name, "2M", format="qcow2")
    with imgtool.open(tmp_path / "b", writable=True) as device:
        device.write_at(MIB, bytes(512))
    one, other = Reference(tmp_path / "a"), Reference(tmp_path / "b")
    assert compare(one, other).identical
    found = compare(one, other, strict=True)
    assert (found.difference, found.offset) == (Difference.ALLOCATION, MIB)


def test_contents_before_an_allocation_that_differs(tmp_path: Path) -> None:
    for name, byte in (("a", b"x"), ("b", b"y")):
        imgtool.create(tmp_path / name, "2M", format="qcow2")
        with imgtool.open(tmp_path / name, writable=True) as device:
            device.write_at(1 << 16, byte)
            if name == "b":
                device.write_at(MIB, b"z")
    found = compare(Reference(tmp_path / "a"), Reference(tmp_path / "b"), strict=True)
    assert (found.difference, found.offset) == (Difference.CONTENT, 1 << 16)


def test_what_both_leave_to_one_backing_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").write_bytes(b"x" * MIB)
    for name in ("a", "b"):
        imgtool.create(tmp_path / name, format="qcow2", backing_file="base", backing_format="raw")

    def fail(self: BlockDevice, offset: int, buffer: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(BlockDevice, "read_into", fail)
    assert compare(Reference(tmp_path / "a"), Reference(tmp_path / "b")).identical


def test_empty_disks_cost_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        imgtool.create(tmp_path / name, "64T", format="qcow2")
    start = time.monotonic()
    assert compare(Reference(tmp_path / "a"), Reference(tmp_path / "b")).identical
    assert time.monotonic() - start < 1


class Failing(RawDevice):
    """A disk that fails to be read, or to be mapped."""

    def __init__(self, where: str) -> None:
        super().__init__(MemoryStorage(b"x" * MIB, "broken"))
        self.where = where

    def _read(self, offset: int, view: memoryview) -> None:
        if self.where == "read":
            raise OSError(5, "Input/output error")
        super()._read(offset, view)

    def _extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]
        if self.where == "map":
            yield Extent(0, 512, Kind.ZERO)
            raise CorruptImage("A table is broken")
        yield from super()._extents(offset, length)


def test_errors_name_the_file() -> None:
    zeros = bytes(MIB)
    with pytest.raises(Unreadable, match="offset 0: Input/output error") as caught:
        compare_devices(Failing("read"), disk(zeros))
    assert caught.value.filename == "broken"
    with pytest.raises(UnknownAllocation, match="A table is broken") as unknown:
        compare_devices(disk(zeros), Failing("map"))
    assert unknown.value.filename == "broken"
