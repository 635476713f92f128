"""The check operation: its report, and what has no checks."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from imgtool.chain import Reference
from imgtool.errors import CorruptImage, ImageError
from imgtool.ops.check import NoChecks, check


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    with imgtool.open(path, writable=True) as device:
        device.write_at(0, b"x" * 200_000)
    return path


def test_report(image: Path) -> None:
    found = check(Reference(image))
    assert found.clean
    assert found.to_dict() == {
        "image-end-offset": found.image_end_offset,
        "total-clusters": 16,
        "check-errors": 0,
        "allocated-clusters": 4,
        "filename": str(image),
        "format": "qcow2",
    }


def test_findings_are_reported_as_they_are_made(image: Path) -> None:
    data = bytearray(image.read_bytes())
    table = int.from_bytes(data[48:56], "big")
    block = int.from_bytes(data[table : table + 8], "big")
    data[block : block + 2] = b"\0\3"
    image.write_bytes(data)
    told: list[str] = []
    found = check(Reference(image), report=told.append)
    assert told == found.messages == ["Leaked cluster 0 refcount=3 reference=1"]
    assert not found.clean
    assert found.to_dict()["leaks"] == 1


def test_other_files_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "over.qcow2"
    imgtool.create(path, "1M", backing_file="gone", backing_format="raw", unsafe=True)
    assert check(Reference(path)).clean


def test_raw_has_no_checks(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(512))
    with pytest.raises(NoChecks, match="does not support checks"):
        check(Reference(path, "raw"))


def test_what_cannot_be_followed_names_its_file(image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[60:64] = (1).to_bytes(4, "big")
    data[64:72] = (1 << 40).to_bytes(8, "big")
    image.write_bytes(data)
    with pytest.raises(CorruptImage, match="snapshot table lies past the end") as caught:
        check(Reference(image))
    assert caught.value.filename == str(image)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"QFI\xfb" + bytes(100))
    with pytest.raises(ImageError):
        check(Reference(path, "qcow2"))
