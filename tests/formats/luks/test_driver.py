"""What is particular to luks images: passwords, sizes, and files that are cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.chain import Opener, Reference, open_image
from imgtool.errors import BadOption, CorruptImage, ImageError, NotPermitted, WrongFormat
from imgtool.extent import Extent, Kind
from imgtool.secrets import Secret
from imgtool.storage.memory import MemoryStorage

_PASSWORD = "open sesame"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.luks"
    imgtool.create(path, "1M", password=_PASSWORD, iter_time=1)
    return path


def _bytes(path: Path) -> MemoryStorage:
    return MemoryStorage(path.read_bytes())


def test_without_and_with_the_wrong_password(image: Path) -> None:
    with pytest.raises(BadOption, match="'key-secret' is required"):
        imgtool.open(image)
    for password in ("", "open Sesame", b"\xff"):
        with pytest.raises(ImageError, match="Invalid password, cannot unlock any keyslot"):
            imgtool.open(image, password=password)


def test_passwords_of_any_bytes_open(tmp_path: Path) -> None:
    """cryptsetup's key files hold anything; QEMU's passwords are UTF-8."""
    path = tmp_path / "x.luks"
    for password in (b"\xff\xfe", b"a\0b", "a\0b"):
        with pytest.raises(BadOption, match="UTF-8"):
            imgtool.create(path, "1M", password=password, iter_time=1)
    imgtool.create(path, "1M", password="ßecret", iter_time=1)
    with imgtool.open(path, password="ßecret".encode()) as disk:
        assert disk.size == 1 << 20


def test_a_secret_of_its_own(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.luks"
    imgtool.convert(image, other, password=_PASSWORD, target_password="another", iter_time=1)
    first = Reference(image, options={"key-secret": Secret(_PASSWORD)})
    second = Reference(other, options={"key-secret": Secret("another")})
    assert imgtool.compare(first, second).identical
    assert imgtool.hash(first) == imgtool.hash(other, password="another")


def test_metadata_needs_no_password(image: Path) -> None:
    info = imgtool.info(image)
    assert (info.format, info.virtual_size, info.encrypted) == ("luks", 1 << 20, True)
    assert info.format_specific is not None
    assert info.format_specific["slots"][0]["active"]
    with open_image(Reference(image), Opener(follow=False)) as device:
        assert device.read_only
        with pytest.raises(ImageError, match="without its password"):
            device.read_at(0, 1)


def test_writing(image: Path) -> None:
    before = image.read_bytes()
    with imgtool.open(image, writable=True, password=_PASSWORD) as disk:
        disk.write_at(511, b"abc")
        disk.write_zeroes(5000, 5000)
    with imgtool.open(image, password=_PASSWORD) as disk:
        assert disk.read_at(511, 3) == b"abc"
        assert disk.read_at(5000, 5000) == bytes(5000)
        assert list(disk.extents()) == [Extent(0, 1 << 20, Kind.DATA)]
    payload = len(before) - (1 << 20)
    after = image.read_bytes()
    assert after[:payload] == before[:payload]
    assert b"abc" not in after[payload : payload + 1024]


def test_resizing(image: Path) -> None:
    with imgtool.open(image, writable=True, password=_PASSWORD) as disk:
        disk.write_at(0, b"kept")
    length = image.stat().st_size
    imgtool.resize(image, "+1000", password=_PASSWORD)
    assert image.stat().st_size == length + 1024
    with imgtool.open(image, password=_PASSWORD) as disk:
        assert disk.size == (1 << 20) + 1024
        assert disk.read_at(0, 4) == b"kept"
    imgtool.resize(image, "64k", shrink=True, password=_PASSWORD)
    assert image.stat().st_size == length - (1 << 20) + (64 << 10)
    imgtool.resize(image, "1M", preallocation="full", password=_PASSWORD)
    assert image.stat().st_blocks * 512 >= 1 << 20
    with pytest.raises(BadOption, match="metadata"):
        imgtool.resize(image, "2M", preallocation="metadata", password=_PASSWORD)


@pytest.mark.parametrize("size", ["0", "1", "512", "1000"])
def test_small_disks(tmp_path: Path, size: str) -> None:
    path = tmp_path / "x.luks"
    imgtool.create(path, size, password=_PASSWORD, iter_time=1)
    with imgtool.open(path, writable=True, password=_PASSWORD) as disk:
        assert disk.size == -(-int(size) // 512) * 512
        disk.write_at(0, b"x" * disk.size)
        assert disk.read_at(0, disk.size) == b"x" * disk.size


@pytest.mark.parametrize("length", [0, 8, 591, 592, 4096, 1 << 20])
def test_files_cut_short(image: Path, length: int) -> None:
    data = image.read_bytes()[:length]
    for password in (None, _PASSWORD):
        with pytest.raises((CorruptImage, WrongFormat)):
            imgtool.open(MemoryStorage(data), format="luks", password=password)
    with pytest.raises((CorruptImage, WrongFormat)):
        imgtool.info(MemoryStorage(data), format="luks")


def test_a_payload_cut_short(image: Path) -> None:
    """The last sector counts if any of it is there, as QEMU counts."""
    data = image.read_bytes()
    with imgtool.open(MemoryStorage(data[:-1000]), password=_PASSWORD) as disk:
        assert disk.size == (1 << 20) - 512
        disk.read_at(0, disk.size)


def test_key_material_past_the_end(image: Path) -> None:
    """The header says where the key lies; nothing is read that is not there."""
    data = bytearray(image.read_bytes())
    data[104:108] = (20).to_bytes(4, "big")  # the payload begins where key material was
    with pytest.raises(CorruptImage, match="slot"):
        imgtool.open(MemoryStorage(data), password=_PASSWORD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'key-secret' is required"),
        ({"password": "x", "cipher_alg": "rot13"}, "rot13"),
        ({"password": "x", "backing_file": "y", "backing_format": "raw"}, "Backing file"),
        ({"password": "x", "detached_header": True}, "detached_header"),
    ],
)
def test_nothing_is_made_of_bad_options(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.luks"
    with pytest.raises(ImageError, match=message):
        imgtool.create(path, "1M", **options)
    assert not path.exists()


def test_a_password_is_never_ignored(tmp_path: Path) -> None:
    for name in ("x.raw", "x.img"):
        with pytest.raises(BadOption, match="cannot be encrypted"):
            imgtool.create(tmp_path / name, "1M", password="x")
        assert not (tmp_path / name).exists()


def test_an_interrupted_creation_leaves_no_image(tmp_path: Path) -> None:
    from imgtool.formats.luks.create import create

    storage = MemoryStorage()
    options = {"key_secret": Secret("x"), "iter_time": 1}
    with create(storage, 1 << 20, options) as image:
        image.device.write_at(0, b"data")
        assert storage.getvalue()[:592] == bytes(592)
        with pytest.raises(WrongFormat):
            imgtool.info(MemoryStorage(storage.getvalue()), format="luks")
        image.finish()
        assert imgtool.info(MemoryStorage(storage.getvalue())).format == "luks"


def test_as_a_backing_file(image: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    imgtool.create(top, backing_file="disk.luks", backing_format="luks")
    with imgtool.open(image, writable=True, password=_PASSWORD) as disk:
        disk.write_zeroes(0, disk.size)
        disk.write_at(100, b"below")
    with pytest.raises(BadOption, match="'key-secret' is required"):
        imgtool.open(top)
    with imgtool.open(top, writable=True, password=_PASSWORD) as disk:
        assert disk.read_at(100, 5) == b"below"
        disk.write_at(102, b"top")
        assert disk.read_at(98, 9) == b"\0\0betop\0\0"
    # What an image names is found where it must be, key or no key.
    with pytest.raises(NotPermitted):
        imgtool.open(top, password=_PASSWORD, policy=imgtool.OpenPolicy(imgtool.Trust.NONE))
