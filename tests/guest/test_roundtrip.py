"""Convert a guest's disk every way that people do: not a byte of it may change.

The disk comes back as raw each time, byte for byte, as sparse as it was, with a clean file
system; each image on the way is read by qemu-img too, and neither tool finds fault with it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from tests.guest import ext4
from tests.guest.command import check_clean, compare, imgtool_command, qemu_img, succeed
from tests.guest.library import locate_ext4
from tests.guest.make_guest import Guest
from tests.guest.partitions import Partition
from tests.kit.tools import require_tool

pytestmark = pytest.mark.slow

COMPRESSED = {
    "zlib": ["-c"],
    "zstd": ["-c", "-o", "compression_type=zstd"],
}

LAYOUTS = {
    "4k clusters": ["-o", "cluster_size=4k"],
    "2M clusters": ["-o", "cluster_size=2M"],
    "subclusters": ["-o", "extended_l2=on"],
    "version 2": ["-o", "compat=0.10"],
    "1-bit refcounts": ["-o", "refcount_bits=1"],
    "64-bit refcounts": ["-o", "refcount_bits=64"],
}

#: How much more of the host's disk a copy may take than the original: extents differ a little.
SLACK = 4 << 20

CHUNK = 1 << 20


@pytest.fixture(scope="module")
def plain(guest: Guest, module_scratch: Path) -> Path:
    """The guest's disk as imgtool converts it to qcow2 when nothing else is said."""
    image = module_scratch / "plain.qcow2"
    imgtool_command("convert", "-f", "raw", "-O", "qcow2", guest.path, image)
    return image


def test_plain(guest: Guest, plain: Path, scratch: Path) -> None:
    check_clean(plain, "qcow2")
    assert_same_disk(guest, plain, scratch)


@pytest.mark.parametrize("options", COMPRESSED.values(), ids=COMPRESSED.keys())
def test_compressed(options: list[str], guest: Guest, plain: Path, scratch: Path) -> None:
    image = scratch / "compressed.qcow2"
    imgtool_command("convert", "-f", "raw", "-O", "qcow2", *options, guest.path, image)
    check_clean(image, "qcow2")
    assert image.stat().st_size < 0.8 * plain.stat().st_size
    assert_same_disk(guest, image, scratch)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_other_layout(options: list[str], guest: Guest, plain: Path, scratch: Path) -> None:
    image = scratch / "other.qcow2"
    imgtool_command("convert", "-f", "qcow2", "-O", "qcow2", *options, plain, image)
    check_clean(image, "qcow2")
    assert_same_disk(guest, image, scratch)


@pytest.mark.parametrize(
    "options",
    [[], *COMPRESSED.values(), LAYOUTS["subclusters"]],
    ids=["plain", *COMPRESSED.keys(), "subclusters"],
)
def test_made_by_qemu_img(options: list[str], guest: Guest, scratch: Path) -> None:
    image = scratch / "foreign.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, guest.path, image)
    check_clean(image, "qcow2")
    assert_same_disk(guest, image, scratch)


def test_library(guest: Guest, scratch: Path) -> None:
    image = scratch / "library.qcow2"
    imgtool.convert(guest.path, image, format="qcow2")
    check_clean(image, "qcow2")
    assert_same_disk(guest, image, scratch)


def test_one_changed_byte_is_noticed(guest: Guest, plain: Path, scratch: Path) -> None:
    """What the other tests rely on: a comparison fails if anything differs."""
    backing = scratch / plain.name
    backing.hardlink_to(plain)
    overlay = scratch / "changed.qcow2"
    imgtool_command("create", "-f", "qcow2", "-b", backing, "-F", "qcow2", overlay)
    assert compare(guest.path, overlay) == 0
    at = guest.offset + guest.length // 2
    with imgtool.open(overlay) as disk:
        changed = disk.read_at(at, 1)[0] ^ 1
    succeed([require_tool("qemu-io"), "-c", f"write -P {changed} {at} 1", str(overlay)])
    assert compare(guest.path, overlay) == 1


def assert_same_disk(guest: Guest, image: Path, scratch: Path) -> None:
    """An image holds the guest's disk, for the library, for qemu-img, and as raw again."""
    assert locate_ext4(image) == Partition(guest.offset, guest.length)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", guest.path, image)

    raw = scratch / "back.raw"
    imgtool_command("convert", "-f", "qcow2", "-O", "raw", image, raw)
    assert raw.stat().st_size == guest.size
    assert first_difference(guest.path, raw) is None
    assert allocated(raw) <= allocated(guest.path) + SLACK
    status, report = ext4.fsck(raw, guest.offset)
    assert status == 0, report


def first_difference(one: Path, other: Path) -> int | None:
    """Return the offset of the first chunk in which two files of one length differ."""
    with open(one, "rb") as left, open(other, "rb") as right:
        while chunk := left.read(CHUNK):
            if right.read(CHUNK) != chunk:
                return left.tell() - len(chunk)
    return None


def allocated(path: Path) -> int:
    """Return how many bytes of the host's disk a file takes."""
    return path.stat().st_blocks * 512
