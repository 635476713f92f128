"""What inspect says of sound images of every format."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable

import pytest

import imgtool
from imgtool import registry
from imgtool.format import Format
from imgtool.inspection import Severity
from imgtool.storage.memory import MemoryStorage
from tests.kit import foreign
from tests.kit.corrupt import put
from tests.kit.qcow2_gallery import GALLERY
from tests.ops.inspect.judging import SOUND, codes, judge, luks1


@pytest.mark.parametrize("name", SOUND)
def test_sound_images_are_safe(name: str) -> None:
    kind, make = SOUND[name]
    found = judge(make())
    assert (found.format, found.verdict, found.reasons) == (kind, "safe", ())
    assert found.names == ()
    assert {claim.format for claim in found.claims} <= {kind}
    if name in foreign.SAMPLES and kind != "iso9660" and name != "luks2":
        assert found.virtual_size == foreign.SIZE


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("vmdk", "monolithicSparse"), ("vmdk-stream", "streamOptimized"), ("vdi", "dynamic"),
        ("vhd-fixed", "fixed"), ("vhd-dynamic", "dynamic"), ("vhdx", "dynamic"),
        ("parallels", "extended"), ("parallels-plain", "plain"), ("iso", "ISO 9660"),
        ("udf", "ISO 9660 and UDF"), ("bochs", "growing"), ("luks2", "version 2"),
        ("luks", "version 1"), ("qcow", "version 1"), ("qcow2", "version 3"),
        ("qcow2-v2", "version 2"), ("raw", None),
    ],
)  # fmt: skip
def test_variant(name: str, variant: str | None) -> None:
    assert judge(SOUND[name][1]()).variant == variant


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("mbr", ("mbr",)), ("gpt", ("gpt",)), ("iso-hybrid", ("mbr",)), ("raw", ()),
        ("vhd-fixed", ()), ("qcow2", ()),
    ],
)  # fmt: skip
def test_contents(name: str, contents: tuple[str, ...]) -> None:
    assert judge(SOUND[name][1]()).contents == contents


def _tar(format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("disk.qcow2"))
    return file.getvalue()


def _zip(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def _zstd() -> bytes:
    import zstandard

    return zstandard.compress(bytes(9))


_PACKED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip": ("gzip", lambda: gzip.compress(foreign.mbr_disk())),
    "xz": ("xz", lambda: lzma.compress(b"x")),
    "zstd": ("zstd", _zstd),
    "bzip2": ("bzip2", lambda: bz2.compress(b"x")),
    "bzip2 of nothing": ("bzip2", lambda: bz2.compress(b"")),
    "7z": ("7z", lambda: b"7z\xbc\xaf\x27\x1c\0\4"),
    "zip": ("zip", lambda: _zip("disk.img")),
    "zip of nothing": ("zip", _zip),
    "tar, ustar": ("tar", lambda: _tar(tarfile.USTAR_FORMAT)),
    "tar, GNU": ("tar", lambda: _tar(tarfile.GNU_FORMAT)),
    "tar, pax": ("tar", lambda: _tar(tarfile.PAX_FORMAT)),
    "elf": ("elf", lambda: b"\x7fELF\2\1\1".ljust(64, b"\0")),
}


@pytest.mark.parametrize("name", _PACKED)
def test_archives_and_programs_are_named(name: str) -> None:
    kind, make = _PACKED[name]
    found = judge(make(), cuts=(7,))
    assert (found.format, found.contents, found.verdict) == ("raw", (kind,), "safe")


def test_what_is_no_archive() -> None:
    archive = _tar(tarfile.USTAR_FORMAT)
    for other in (put(archive, 0, b"D"), archive[:511], b"BZh9 is a name", b"PK", bytes(512)):
        assert judge(other).contents == ()


def test_an_archive_in_front_of_an_image_is_another_format() -> None:
    found = judge(put(foreign.vdi(), 0, b"PK\3\4"))
    assert codes(found) == {"polyglot"}
    assert {claim.format for claim in found.claims} == {"vdi", "zip"}


def test_encryption_and_features() -> None:
    assert judge(luks1()).encryption == "luks aes-512 xts-plain64 sha256"
    assert judge(luks1()).virtual_size == foreign.SIZE
    assert judge(SOUND["luks2"][1]()).encryption == "luks2"
    found = judge(SOUND["qcow2-encrypted"][1]())
    assert found.encryption == "luks aes-512 xts-plain64 sha256"
    found = judge(SOUND["qcow2-zstd-extended"][1]())
    assert {"extended L2 entries", "zstd compression", "internal snapshots"} <= set(found.features)
    assert "snapshots" in codes(found, Severity.WARNING)


def test_unknown_compatible_features_are_named() -> None:
    found = judge(GALLERY["unknown"]().build())
    assert found.safe
    assert {"compatible feature bit 50", "autoclear feature bit 51"} <= set(found.features)
    assert {"unknown-compatible", "unknown-extension"} <= codes(found, Severity.NOTE)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000])
def test_small_files_are_raw(size: int) -> None:
    found = judge(bytes(size), cuts=(1,))
    assert (found.format, found.verdict, found.file_size) == ("raw", "safe", size)
    assert found.virtual_size == -(-size // 512) * 512


def test_a_gpt_on_large_sectors() -> None:
    table = foreign.gpt_disk((64, 1000))[1024 : 1024 + 128 * 128]
    last = foreign.SIZE // 4096 - 1
    disk = foreign.mbr((0, 0xEE, 1, last)).ljust(foreign.SIZE, b"\0")
    disk = put(disk, 4096, foreign.gpt_header(1, last, 2, table, first=6, last=1017))
    disk = put(disk, 8192, table)
    disk = put(disk, (last - 4) * 4096, table)
    copy = foreign.gpt_header(last, 1, last - 4, table, first=6, last=1017)
    disk = put(disk, last * 4096, copy)
    found = judge(disk)
    assert (found.contents, found.problems) == (("gpt",), ())
    for place in (8192 + 60, (last - 4) * 4096 + 60):
        assert codes(judge(put(disk, place, b"x"))) == {"gpt-table-crc"}


def test_plugins_are_recognised_and_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(head: bytes, tail: bytes) -> int:
        return 100 if head.startswith(b"FAKE") else 1

    fake = Format(name="fake", description="", probe=probe, opener="")
    monkeypatch.setattr(registry, "_plugins", lambda: {"fake": fake})
    assert judge(bytes(512)).format == "raw"
    found = judge(b"FAKE".ljust(512, b"\0"))
    assert (found.format, found.verdict) == ("fake", "unsafe")
    assert found.reasons == (
        "The structure of the image could not be checked: the format has no inspector",
    )


def test_a_sector_that_cannot_be_read_is_not_safe() -> None:
    class Failing(MemoryStorage):
        def read_at(self, offset: int, length: int) -> bytes:
            raise OSError(5, "Input/output error")

    found = imgtool.inspect(Failing(bytes(4096)))
    assert not found.safe
    assert {item.reason for item in found.unchecked} == {"Input/output error"}


@pytest.mark.parametrize(
    ("boot", "contents"),
    [
        (b"\xeb\x52\x90NTFS    " + b"\0\2\x08".ljust(10, b"\0"), ("ntfs",)),
        (b"\xeb\x76\x90EXFAT   ", ("exfat",)),
        (b"\xeb\x3c\x90mkfs.fat\0\2\4\1\0\2\0\2\0\x80\xf8", ("fat",)),
    ],
)
def test_boot_sectors_of_file_systems_are_no_partition_tables(
    boot: bytes, contents: tuple[str, ...]
) -> None:
    # Their code has its own use for the places where an MBR has its partitions.
    disk = (boot.ljust(510, b"\x33") + b"\x55\xaa").ljust(1 << 20, b"\0")
    found = judge(disk)
    assert (found.contents, found.problems) == (contents, ())
