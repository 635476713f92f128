"""Weaknesses that disk image tools have had, and that this one must not have.

Each test is named for what was recorded at the time. They go through the public interface and its
defaults, as a service does that was given an image by a stranger.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool.chain import Opener, Reference
from imgtool.errors import CorruptImage, ImageError, NotPermitted
from imgtool.formats.qcow2 import schema
from imgtool.ops.check import check
from imgtool.storage.file import FileStorage
from tests.kit import qcow2
from tests.kit.corrupt import fields, patch, put
from tests.kit.limits import MiB, within_limits
from tests.kit.qcow2 import ImageBuilder

SECRET = b"root:x:0:0:root:/root:/bin/sh\n" * 40


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGTOOL_TRUST", raising=False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host that no guest may see."""
    path = tmp_path / "host" / "passwd"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The folder in which strangers' images are put."""
    path = tmp_path / "uploads"
    path.mkdir()
    return path


def upload(path: Path, image: bytes, **values: int) -> Path:
    """Write an image with header fields changed, by the specification's names."""
    for known, base in ((schema.HEADER_V2, 0), (schema.HEADER_V3, 72)):
        mine = {name: values.pop(name) for name in fields(known) if name in values}
        image = patch(image, known, base, **mine)
    assert not values
    path.write_bytes(image)
    return path


def plain(size: int = MiB, **options: object) -> bytes:
    builder = ImageBuilder(size, **options)  # type: ignore[arg-type]
    builder.data(0)
    return builder.build()


def refused(path: Path, error: type[ImageError] = CorruptImage) -> None:
    """Opening, describing and converting must all be refused, soon and in little memory."""
    target = path.with_suffix(".out")

    def work() -> None:
        with pytest.raises(error):
            imgtool.open(path, format="qcow2")
        with pytest.raises(error):
            imgtool.convert(path, target, source_format="qcow2", format="raw")
        if error is CorruptImage:
            with pytest.raises(error):
                imgtool.info(path, format="qcow2")

    within_limits(work)
    assert not target.exists()


def test_cve_2008_2004_guest_writes_a_header_into_its_raw_disk(uploads: Path, secret: Path) -> None:
    """The disk would be taken for an image over a file of the host at the next start."""
    disk = uploads / "disk.img"
    disk.write_bytes(bytes(MiB))
    header = plain(backing=bytes(secret), backing_format=b"raw")[:65536]
    with pytest.raises(ImageError, match="guess"):
        imgtool.open(disk, writable=True)
    with imgtool.open(disk, format="raw", writable=True) as device:
        device.write_at(0, header)
    with imgtool.open(disk, format="raw") as device:
        assert device.format == "raw"
        assert device.read_at(0, 65536) == header
    with pytest.raises(NotPermitted):
        imgtool.open(disk)
    # Nor does it take effect one level down.
    over = upload(uploads / "over.qcow2", ImageBuilder(MiB, backing=b"disk.img").build())
    with pytest.raises(NotPermitted, match="records no format"):
        imgtool.open(over)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("recorded", [b"raw", None])
def test_cve_2011_3147_backing_file_of_the_host(
    uploads: Path, secret: Path, relative: bool, recorded: bytes | None
) -> None:
    name = b"../host/passwd" if relative else bytes(secret)
    image = ImageBuilder(MiB, backing=name, backing_format=recorded).build()
    refused(upload(uploads / "disk.qcow2", image), NotPermitted)


def test_cve_2015_5163_backing_file_of_the_host_is_not_converted(
    uploads: Path, secret: Path
) -> None:
    inner = ImageBuilder(MiB, backing=bytes(secret), backing_format=b"raw").build()
    upload(uploads / "base.qcow2", inner)
    outer = ImageBuilder(MiB, backing=b"base.qcow2", backing_format=b"qcow2").build()
    path = upload(uploads / "disk.qcow2", outer)
    for target in ("raw", "qcow2"):
        with pytest.raises(NotPermitted):
            imgtool.convert(path, uploads / "out", format=target)
        assert not (uploads / "out").exists()


def parallels() -> bytes:
    """A header whose tracks, by which something would be divided, are none."""
    names = (b"WithoutFreeSpace", 2, 16, 1, 0, 1, 2048)
    return struct.pack("<16s6I", *names).ljust(MiB, b"\0")


def bochs() -> bytes:
    """The same of extents of no size."""
    kinds = (b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x20000, 512, 1, 0, 0, MiB)
    return struct.pack("<32s16s16s5IQ", *kinds).ljust(MiB, b"\0")


def vhdx() -> bytes:
    """Two headers of one sequence, and a region table of more entries than it can have."""
    image = bytearray(MiB)
    image[:8] = b"vhdxfile"
    for offset in (64 << 10, 128 << 10):
        image[offset : offset + 4] = b"head"
    for offset in (192 << 10, 256 << 10):
        image[offset : offset + 16] = struct.pack("<4sIII", b"regi", 0, 0xFFFFFFFF, 0)
    return bytes(image)


@pytest.mark.parametrize("make", [parallels, bochs, vhdx])
def test_cve_2014_0142_and_0148_division_by_zero_and_a_loop(
    uploads: Path, make: Callable[[], bytes]
) -> None:
    """Whatever is made of such a file, it is soon and in little memory."""
    path = upload(uploads / "disk.img", make())

    def work() -> None:
        for known in (None, make.__name__):
            for look in (
                lambda: imgtool.info(path, format=known),  # noqa: B023
                lambda: imgtool.check(path, format=known),  # noqa: B023
                lambda: list(imgtool.map(path, format=known)),  # noqa: B023
                lambda: imgtool.convert(path, uploads / "out", source_format=known, format="raw"),  # noqa: B023
            ):
                with contextlib.suppress(ImageError):
                    look()

    within_limits(work)


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentFlat", "fullDevice", "vmfs"])
@pytest.mark.parametrize("relative", [False, True])
def test_cve_2022_47951_vmdk_extent_of_the_host(
    uploads: Path, secret: Path, kind: str, relative: bool
) -> None:
    """A descriptor is a text that names files, and whoever follows it copies them to strangers."""
    name = "../host/passwd" if relative else str(secret)
    descriptor = (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="{kind}"\nRW 2 FLAT "{name}" 0\n'
    )
    path = upload(uploads / "disk.vmdk", descriptor.encode())
    for known in (None, "vmdk"):
        with contextlib.suppress(ImageError):
            imgtool.convert(path, uploads / "out", source_format=known, format="raw")
            assert SECRET[:64] not in (uploads / "out").read_bytes()
    # The gate that every format's extents go through.
    with FileStorage.open(path) as storage, pytest.raises(NotPermitted):
        Opener().named_file(storage, name, "extent")


@pytest.mark.parametrize("clusters", [0x80000000, 0xFFFFFFFF, 0x20000000, 129])
def test_cve_2014_0143_refcount_table_size_overflows(uploads: Path, clusters: int) -> None:
    refused(upload(uploads / "x", plain(), refcount_table_clusters=clusters))


@pytest.mark.parametrize("entries", [0x10000000, 0x20000001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_cve_2014_0143_l1_table_size_overflows(uploads: Path, entries: int) -> None:
    refused(upload(uploads / "x", plain(), l1_size=entries))


@pytest.mark.parametrize(
    "values",
    [
        {"header_length": 0x7FFFFFFF},
        {"header_length": 0xFFFFFFFF},
        {"backing_file_offset": 0x7FFFFFFF_FFFFFFFF, "backing_file_size": 1},
        {"backing_file_offset": 0xFFFFFFFF_FFFFFFFF, "backing_file_size": 1},
        {"refcount_table_offset": 0x12345678},
        {"refcount_table_offset": 0xFFFFFFFF_FFFF0000},
        {"snapshots_offset": 0x12345678, "nb_snapshots": 1},
        {"snapshots_offset": 0xFFFFFFFF_FFFF0000, "nb_snapshots": 1},
        {"nb_snapshots": 0x7FFFFFFF},
        {"nb_snapshots": 0xFFFFFFFF},
        {"l1_table_offset": 0x12345678},
        {"l1_table_offset": 0x7FFFFFFF_FFFF0000},
        {"l1_table_offset": 0xFFFFFFFF_FFFF0000},
    ],
    ids=lambda values: next(iter(values)),
)
def test_cve_2014_0144_header_fields_without_bounds(uploads: Path, values: dict[str, int]) -> None:
    refused(upload(uploads / "x", plain(), **values))


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFF8, 0x80000000])
def test_cve_2014_0144_extension_without_bounds(uploads: Path, length: int) -> None:
    refused(upload(uploads / "x", put(plain(), 104, struct.pack(">II", 1, length))))


@pytest.mark.parametrize("length", [1024, 2000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_cve_2014_0145_backing_file_name_overflows(uploads: Path, length: int) -> None:
    image = put(plain(), 512, b"n" * 4096)
    refused(upload(uploads / "x", image, backing_file_offset=512, backing_file_size=length))


def test_cve_2014_0145_snapshot_with_a_larger_l1_table_than_the_disk(uploads: Path) -> None:
    """The buffer was as large as the disk's own table."""
    builder = ImageBuilder(64 << 9, cluster_bits=9)
    builder.data(0)
    builder.snapshot(b"1", b"one", l1_extra=5000)
    builder.unmap(0)
    path = upload(uploads / "disk.qcow2", builder.build())
    with imgtool.open(path, snapshot="one") as device:
        assert device.read_at(0, device.size) == builder.expected_snapshot(0)


@pytest.mark.parametrize("size", [0x10000000, 0x7FFFFFFF, 0xFFFFFFFF, 4 * MiB + 1])
def test_cve_2014_0143_snapshot_with_an_l1_table_without_bounds(uploads: Path, size: int) -> None:
    builder = ImageBuilder(MiB)
    builder.snapshot(b"1", b"one")
    image = builder.build()
    where = builder.places["snapshots"][0]
    path = upload(uploads / "disk.qcow2", patch(image, schema.SNAPSHOT_HEAD, where, l1_size=size))
    with pytest.raises(CorruptImage):
        imgtool.open(path, snapshot="one")


@pytest.mark.parametrize(
    "extensions",
    [
        [(qcow2.CRYPTO, b"short")],
        [(qcow2.CRYPTO, struct.pack(">QQ", 513, 1))],
    ],
)
def test_cve_2014_0146_failure_half_way_through_opening(
    uploads: Path, extensions: list[tuple[int, bytes]]
) -> None:
    """Cleaning up after a bad extension used what had not been set up yet."""
    refused(upload(uploads / "x", plain(extensions=extensions, header={"crypt_method": 2})))


@pytest.mark.parametrize("offset", [1 << 62, (1 << 64) - 512, 0x7FFFFFFF_FFFF0000, 512])
def test_cve_2014_0147_refcount_blocks_anywhere(uploads: Path, offset: int) -> None:
    builder = ImageBuilder(MiB)
    builder.data(0)
    image = builder.build()
    place = builder.places["refcount-table"][0]
    path = upload(uploads / "x", put(image, place, offset.to_bytes(8, "big")))

    def work() -> bool:
        # Reading needs no refcounts; checking finds that they are wrong.
        with imgtool.open(path) as device:
            assert device.read_at(0, MiB) == builder.expected()
        return not check(Reference(path)).clean

    assert within_limits(work)


@pytest.mark.parametrize(
    "values",
    [
        {"cluster_bits": 0},
        {"cluster_bits": 32},
        {"cluster_bits": 63},
        {"cluster_bits": 64},
        {"size": 0xFFFFFFFF_FFFFFFFF},
        {"size": 1 << 63},
        {"size": (1 << 63) - 1},
        {"size": 1 << 59},
    ],
    ids=lambda values: "{}-{}".format(*next(iter(values.items()))),
)
def test_cve_2014_0222_and_0223_geometry_that_overflows(
    uploads: Path, values: dict[str, int]
) -> None:
    refused(upload(uploads / "x", plain(), **values))


def test_cve_2015_5162_describing_an_image_takes_little(uploads: Path) -> None:
    """Images that made info take gigabytes, or minutes."""
    path = uploads / "disk.qcow2"
    with path.open("wb") as file:
        values = {"size": (4 * MiB) << 29, "l1_size": 4 * MiB, "l1_table_offset": 1 << 22}
        file.write(patch(plain(), schema.HEADER_V2, **values))
        file.truncate(1 << 40)
    assert within_limits(lambda: imgtool.info(path).virtual_size) == (4 * MiB) << 29


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"}}',
        'json:{"driver":"file","filename":"/etc/passwd"}',
        "nbd:unix:/run/socket",
        "/dev/zero",
    ],
)
def test_cve_2024_4467_data_file_that_info_would_open(uploads: Path, name: str) -> None:
    builder = ImageBuilder(MiB, external=True, extensions=[(qcow2.DATA_FILE, name.encode())])
    builder.data(0)
    path = upload(uploads / "disk.qcow2", builder.build())
    assert within_limits(lambda: imgtool.info(path).virtual_size) == MiB
    with pytest.raises(NotPermitted):
        imgtool.open(path)


@pytest.mark.parametrize("raw", [False, True])
def test_cve_2024_32498_data_file_of_the_host(uploads: Path, secret: Path, raw: bool) -> None:
    builder = ImageBuilder(
        MiB,
        external=True,
        extensions=[(qcow2.DATA_FILE, bytes(secret))],
        header={"autoclear_features": qcow2.RAW_EXTERNAL if raw else 0},
    )
    builder.data(0)
    path = upload(uploads / "disk.qcow2", builder.build())
    refused(path, NotPermitted)
    with pytest.raises(NotPermitted):
        imgtool.open(path, writable=True)
    assert secret.read_bytes() == SECRET


def test_cve_2026_24708_header_in_a_raw_disk_is_not_acted_upon(uploads: Path, secret: Path) -> None:
    """A resize without a format would write to the data file that the header names."""
    builder = ImageBuilder(MiB, external=True, extensions=[(qcow2.DATA_FILE, bytes(secret))])
    path = upload(uploads / "disk.img", builder.build())
    before = path.read_bytes()
    with pytest.raises(NotPermitted):
        imgtool.open(path, writable=True)
    assert path.read_bytes() == before
    assert secret.read_bytes() == SECRET
    with imgtool.open(path, format="raw", writable=True) as device:
        device.resize(2 * MiB)
    assert path.read_bytes() == before.ljust(2 * MiB, b"\0")
    assert secret.read_bytes() == SECRET
