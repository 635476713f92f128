"""The raw driver: parts of files as disks, sizes in whole sectors, holes, and writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.errors import BadOption, OutOfRange
from imgtool.extent import Kind
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import check_extents, check_reads, open_disk

CONTENT = bytes(number * 7 % 251 for number in range(20_000))


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 20_000])
def test_sizes_are_rounded_up_to_sectors(length: int) -> None:
    with open_disk(MemoryStorage(CONTENT[:length]), "raw") as device:
        assert device.size == -(-length // 512) * 512
        check_reads(device, CONTENT[:length].ljust(device.size, b"\0"), count=10)
        check_extents(device, CONTENT[:length].ljust(device.size, b"\0"))


@pytest.mark.parametrize(("offset", "size"), [(0, 512), (512, 1024), (1000, 5000), (19_999, 1)])
def test_part_of_a_file(offset: int, size: int) -> None:
    options = {"offset": offset, "size": size}
    with open_disk(MemoryStorage(CONTENT), "raw", options=options) as device:
        assert device.size == size
        check_reads(device, CONTENT[offset : offset + size], count=10)
        check_extents(device, CONTENT[offset : offset + size])
        with pytest.raises(OutOfRange):
            device.read_at(0, size + 1)
        assert next(iter(device.extents())).host_offset == offset


@pytest.mark.parametrize("options", [{"offset": "1k"}, {"offset": 1024, "size": None}])
def test_all_that_follows_an_offset(options: dict[str, object]) -> None:
    with open_disk(MemoryStorage(CONTENT), "raw", options=options) as device:
        assert device.size == 20_480 - 1024
        assert device.read_at(0, 100) == CONTENT[1024:1124]


@pytest.mark.parametrize(
    "options",
    [
        {"offset": 20_481},
        {"size": 20_481},
        {"offset": 20_000, "size": 481},
        {"offset": (1 << 63) - 1},
        {"offset": 0, "size": (1 << 63) - 1},
        {"offset": -1},
        {"size": "-1"},
        {"size": "many"},
        {"bogus": 1},
    ],
)
def test_parts_that_do_not_exist(options: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        open_disk(MemoryStorage(CONTENT), "raw", options=options)


def test_part_is_written_within_its_bounds() -> None:
    storage = MemoryStorage(CONTENT)
    options = {"offset": 1000, "size": 2000}
    with open_disk(storage, "raw", options=options, writable=True) as device:
        device.write_at(0, b"begin")
        device.write_zeroes(100, 50)
        device.write_at(1997, b"end")
        for offset, data in [(1998, b"end"), (-1, b"x"), (2000, b"x")]:
            with pytest.raises(OutOfRange):
                device.write_at(offset, data)
        with pytest.raises(BadOption):
            device.resize(3000)
        device.flush()
    expected = bytearray(CONTENT)
    expected[1000:1005] = b"begin"
    expected[1100:1150] = bytes(50)
    expected[2997:3000] = b"end"
    assert storage.getvalue() == expected


def test_holes_are_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 65536)
        file.truncate(8 << 20)
    with open_disk(path, "raw") as device:
        found = [(extent.offset, extent.length, extent.kind) for extent in device.extents()]
        assert found == [
            (0, 1 << 20, Kind.ZERO),
            (1 << 20, 65536, Kind.DATA),
            ((1 << 20) + 65536, (7 << 20) - 65536, Kind.ZERO),
        ]
        check_reads(device, path.read_bytes(), count=10)


def test_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    with open_disk(path, "raw") as device:
        with path.open("r+b") as file:
            file.truncate(1000)
        assert device.read_at(0, 20_000) == CONTENT[:1000].ljust(20_000, b"\0")
        assert sum(extent.length for extent in device.extents()) == device.size
