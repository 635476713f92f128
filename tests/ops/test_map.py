"""The map operation."""

from __future__ import annotations

from pathlib import Path

import imgtool
from imgtool.chain import Reference
from imgtool.extent import Kind
from imgtool.ops.map import extent_dict, map_image


def make(path: Path) -> Reference:
    imgtool.create(path, "10M")
    with imgtool.open(path, writable=True) as device:
        device.write_at(1 << 20, b"x" * (1 << 17))
        device.write_at(2 << 20, b"x" * (1 << 16))
        device.write_zeroes(2 << 20, 1 << 16)
    return Reference(path)


def test_whole(tmp_path: Path) -> None:
    found = list(map_image(make(tmp_path / "a.qcow2")))
    assert [extent.kind for extent in found] == [
        Kind.UNALLOCATED,
        Kind.DATA,
        Kind.UNALLOCATED,
        Kind.ZERO,
        Kind.UNALLOCATED,
    ]
    assert extent_dict(found[1]) == {
        "start": 1 << 20,
        "length": 1 << 17,
        "depth": 0,
        "present": True,
        "zero": False,
        "data": True,
        "compressed": False,
        "offset": found[1].host_offset,
    }
    assert "offset" not in extent_dict(found[0])


def test_parts(tmp_path: Path) -> None:
    reference = make(tmp_path / "a.qcow2")
    for start, length, first, last in (
        (1 << 20, None, 1 << 20, 10 << 20),
        (100, 200, 100, 300),
        (9 << 20, 9 << 20, 9 << 20, 10 << 20),
    ):
        found = list(map_image(reference, start_offset=start, max_length=length))
        assert (found[0].offset, found[-1].end) == (first, last)
    assert not list(map_image(reference, start_offset=10 << 20))
    assert not list(map_image(reference, start_offset=99 << 20))
    assert not list(map_image(reference, max_length=0))


def test_the_image_is_closed_with_the_iterator(tmp_path: Path) -> None:
    extents = map_image(make(tmp_path / "a.qcow2"))
    next(extents)
    extents.close()  # type: ignore[attr-defined]
    # The image's locks are gone: it can be opened for writing.
    imgtool.open(tmp_path / "a.qcow2", writable=True).close()
