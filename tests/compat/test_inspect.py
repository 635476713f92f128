"""inspect next to real tools: the images that qemu-img writes, and OpenStack's inspector."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import imgtool
from tests.compat.workshop import Workshop
from tests.kit import foreign
from tests.kit.tools import require_tool
from tests.ops.inspect.judging import NAME, SOUND, as_stream, judge
from tests.ops.inspect.test_hostile import HOSTILE
from tests.ops.inspect.test_polyglots import POLYGLOTS

# What qemu-img writes


class Written(NamedTuple):
    """How qemu-img makes an image of ``base.raw``, and what it is then."""

    options: tuple[str, ...]
    format: str
    variant: str | None
    suffix: str = "img"


_SECRET = ("--object", "secret,id=s,data=x")


def _vmdk(kind: str) -> Written:
    return Written(("-O", "vmdk", "-o", f"subformat={kind}"), "vmdk", kind, "vmdk")


WRITTEN = {
    "raw": Written(("-O", "raw"), "raw", None),
    "qcow2": Written(("-O", "qcow2"), "qcow2", "version 3"),
    "qcow2-v2": Written(("-O", "qcow2", "-o", "compat=0.10"), "qcow2", "version 2"),
    "qcow2-compressed": Written(("-c", "-O", "qcow2"), "qcow2", "version 3"),
    "qcow2-zstd": Written(
        ("-c", "-O", "qcow2", "-o", "compression_type=zstd"), "qcow2", "version 3"
    ),
    "qcow2-512": Written(("-O", "qcow2", "-o", "cluster_size=512"), "qcow2", "version 3"),
    "qcow2-2M": Written(("-O", "qcow2", "-o", "cluster_size=2M"), "qcow2", "version 3"),
    "qcow2-extended": Written(("-O", "qcow2", "-o", "extended_l2=on"), "qcow2", "version 3"),
    "qcow2-full": Written(("-O", "qcow2", "-o", "preallocation=full"), "qcow2", "version 3"),
    "qcow2-luks": Written(
        (*_SECRET, "-O", "qcow2",
         "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
        "qcow2", "version 3",
    ),
    "luks": Written((*_SECRET, "-O", "luks", "-o", "key-secret=s,iter-time=10"), "luks",
                    "version 1"),
    "qcow": Written(("-O", "qcow"), "qcow", "version 1"),
    "vmdk": _vmdk("monolithicSparse"),
    "vmdk-stream": _vmdk("streamOptimized"),
    "vdi": Written(("-O", "vdi"), "vdi", "dynamic"),
    "vdi-static": Written(("-O", "vdi", "-o", "static=on"), "vdi", "fixed"),
    "vpc": Written(("-O", "vpc"), "vhd", "dynamic"),
    "vpc-fixed": Written(("-O", "vpc", "-o", "subformat=fixed"), "vhd", "fixed"),
    "vhdx": Written(("-O", "vhdx"), "vhdx", "dynamic"),
    "vhdx-fixed": Written(("-O", "vhdx", "-o", "subformat=fixed"), "vhdx", "fixed"),
    "qed": Written(("-O", "qed"), "qed", None),
    "parallels": Written(("-O", "parallels"), "parallels", "extended"),
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A directory with ``base.raw``, a disk with a partition and some data."""
    made = Workshop(tmp_path_factory.mktemp("inspect") / "shop")
    disk = bytearray(foreign.mbr_disk())
    disk[2048 * 512 : 2048 * 512 + 1_500_000] = bytes(range(1, 251)) * 6000
    (made.directory / "base.raw").write_bytes(disk)
    return made


def _judged_by_qemu(workshop: Workshop, path: Path) -> tuple[str, int]:
    shown = json.loads(
        workshop._run([require_tool("qemu-img"), "info", "--output=json", str(path)])
    )
    return shown["format"], shown["virtual-size"]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_qemu_img_writes_is_safe(workshop: Workshop, name: str) -> None:
    how = WRITTEN[name]
    path = workshop.directory / f"{name}.{how.suffix}"
    workshop.img("convert", "-q", "-f", "raw", *how.options, "base.raw", path.name)
    found = imgtool.inspect(path)
    assert (found.format, found.variant, found.reasons) == (how.format, how.variant, ())
    kind, size = _judged_by_qemu(workshop, path)
    if name == "vpc-fixed":
        # QEMU takes it for raw, footer and all, unless it is told.
        assert (kind, size) == ("raw", path.stat().st_size)
    else:
        assert (found.format, found.virtual_size) == ({"vpc": "vhd"}.get(kind, kind), size)
    image = path.read_bytes()
    whole = imgtool.Inspector(filename=str(path))
    whole.feed(image)
    assert whole.finish() == found


@pytest.mark.parametrize(
    ("format", "backing", "role"),
    [
        ("qcow2", ("-b", "base.raw", "-F", "raw"), "backing-file"),
        ("qed", ("-b", "base.raw", "-F", "raw"), "backing-file"),
        ("qcow", ("-b", "base.raw", "-F", "raw"), "backing-file"),
        ("vmdk", ("-b", "below.vmdk", "-F", "vmdk"), "parent"),
    ],
)
def test_overlays_that_qemu_img_writes(
    workshop: Workshop, format: str, backing: tuple[str, ...], role: str
) -> None:
    workshop.img("create", "-q", "-f", "vmdk", "below.vmdk", "4M")
    workshop.img("create", "-q", "-f", format, *backing, f"top.{format}")
    found = imgtool.inspect(workshop.directory / f"top.{format}")
    assert not found.safe
    assert (role, backing[1]) in [(name.role, name.name) for name in found.names]


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_disks_in_pieces_that_qemu_img_writes(workshop: Workshop, kind: str) -> None:
    path = workshop.directory / f"{kind}.vmdk"
    workshop.img(
        "convert", "-q", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", "base.raw", path.name
    )
    found = imgtool.inspect(path)
    assert (found.format, found.variant, found.safe) == ("vmdk", kind, False)
    assert [name.role for name in found.names] == ["extent"]
    assert (workshop.directory / found.names[0].name).exists()
    assert _judged_by_qemu(workshop, path) == ("vmdk", found.virtual_size)


def test_data_file_snapshots_and_bitmaps(workshop: Workshop) -> None:
    workshop.img(
        "create", "-q", "-f", "qcow2", "-o", "data_file=ext,data_file_raw=on", "df.q", "1M"
    )
    found = imgtool.inspect(workshop.directory / "df.q")
    assert [(name.role, name.name) for name in found.names] == [("data-file", "ext")]
    path = workshop.directory / "more.q"
    workshop.img("convert", "-q", "-f", "raw", "-O", "qcow2", "base.raw", path.name)
    for name in ("one", "two"):
        workshop.img("snapshot", "-c", name, path.name)
        workshop.img("bitmap", "--add", path.name, name)
    found = imgtool.inspect(path)
    assert found.safe
    assert {"bitmaps", "internal snapshots"} <= set(found.features)
    assert as_stream(path.read_bytes(), 50_000).verdict == "safe"


#: Those that qemu-img takes for what they are only if it is told, and for what it takes them.
_NOT_PROBED = {"vhd-fixed": "raw", "iso9660": "raw", "luks2": "raw"}


@pytest.mark.parametrize("name", sorted(foreign.SAMPLES))
def test_qemu_img_takes_the_samples_for_the_same(tmp_path: Path, name: str) -> None:
    kind, make = foreign.SAMPLES[name]
    workshop = Workshop(tmp_path / "shop")
    path = workshop.directory / "image"
    path.write_bytes(make())
    seen, size = _judged_by_qemu(workshop, path)
    expected = _NOT_PROBED.get(name, _NOT_PROBED.get(kind, {"vhd": "vpc"}.get(kind, kind)))
    assert seen == expected
    if name != "vhd-fixed":
        assert imgtool.inspect(path).virtual_size == size


# OpenStack's inspector

#: What OpenStack's inspector refuses and imgtool does not.
_ALLOWED_HERE = {
    "qed": "the format as such",
    "qcow": "the format as such",
    "qcow-compressed": "the format as such",
    "iso-hybrid": "a disc with a partition table, as every bootable one",
    "luks2": "the format as such",
    "qcow2-extended": "extended L2 entries, which QEMU knows since 5.2",
    "qcow2-extended-64k": "the same",
    "qcow2-zstd-extended": "the same",
}


def _openstack(path: Path) -> bool:
    """Whether OpenStack's inspector finds a file safe, and of one format."""
    from oslo_utils.imageutils import format_inspector

    try:
        inspector = format_inspector.detect_file_format(str(path))
        inspector.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed):
        return False
    return True


_EVERYTHING: dict[str, Callable[[], bytes]] = {
    **{name: make for name, (_, make) in SOUND.items()},
    **{name: make for name, (make, _) in HOSTILE.items()},
    **{name: make for name, (make, _, _) in POLYGLOTS.items()},
}


def test_whatever_openstack_refuses_is_refused(tmp_path: Path) -> None:
    logging.getLogger("oslo_utils").setLevel(logging.CRITICAL)
    allowed, caught = set(), 0
    path = tmp_path / "image"
    for name, make in _EVERYTHING.items():
        image = make()
        path.write_bytes(image)
        theirs, ours = _openstack(path), imgtool.inspect(path).safe
        if ours and not theirs:
            allowed.add(name)
        caught += theirs and not ours
    assert allowed == set(_ALLOWED_HERE)
    # What only imgtool sees: it is to become more, not less.
    assert caught >= 80


def test_empty_partition_tables_are_told_of() -> None:
    # OpenStack refuses them; a disk may be empty.
    found = judge(foreign.mbr().ljust(1 << 20, b"\0"))
    assert found.filename == NAME
    assert [problem.code for problem in found.problems] == ["mbr-empty"]
