"""What speaks against an image: each problem once, and nothing but it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from imgtool.inspection import Severity
from imgtool.inspection.filenames import oddities
from tests.kit import foreign as f
from tests.kit.corrupt import patch, put
from tests.kit.qcow2 import DATA_FILE, FEATURE_NAMES, ImageBuilder
from tests.ops.inspect.judging import codes, judge, l2_table, luks1, qcow2

Make = Callable[[], bytes]


def _qcow2(**header: int) -> Make:
    return lambda: qcow2(header=header)


def _backing(name: bytes, format: bytes | None = b"raw") -> Make:
    return lambda: qcow2(backing=name, backing_format=format)


def _unknown_bit() -> bytes:
    name = struct.pack(">BB46s", 0, 40, b"frobnication")
    return qcow2(
        extensions=[(FEATURE_NAMES, name)], header={"incompatible_features": 1 << 40 | 1 << 41}
    )


def _external(name: bytes | None) -> Make:
    def make() -> bytes:
        extensions = [] if name is None else [(DATA_FILE, name)]
        builder = ImageBuilder(f.SIZE, external=True, extensions=extensions)
        builder.data(0)
        return builder.build()

    return make


def _l1(first: int, second: int = 0) -> Make:
    """A qcow2 image whose L1 table has these entries."""

    def make() -> bytes:
        builder = ImageBuilder(1 << 30, cluster_bits=16)
        builder.data(0)
        image = builder.build()
        return put(image, builder.places["l1"][0], struct.pack(">QQ", first, second))

    return make


def _l2(*entry: int, place: int = 8, **options: Any) -> Make:
    """A qcow2 image with another entry at a place in its L2 table."""

    def make() -> bytes:
        image = qcow2(**options)
        return put(image, l2_table(image) + place, struct.pack(f">{len(entry)}Q", *entry))

    return make


def _snapshots(**changes: int) -> Make:
    def make() -> bytes:
        from imgtool.formats.qcow2.schema import SNAPSHOT_HEAD

        builder = ImageBuilder(f.SIZE)
        builder.data(0)
        builder.snapshot(b"1", b"one")
        image = builder.build()
        place = int.from_bytes(image[64:72], "big")
        return patch(image, SNAPSHOT_HEAD, place, **changes)

    return make


def _flat(extent: str, **more: str) -> Make:
    return lambda: f.description("monolithicFlat", extent, **more)


def _inner(extents: str, kind: str = "monolithicSparse", **changes: Any) -> Make:
    return lambda: f.vmdk(text=f.description(kind, extents), **changes)


#: The description of a disk on top of another.
_CHILD = f.description(more='parentFileNameHint="base.vmdk"')


def _stream_with(sector: int, value: int) -> Make:
    """A stream with another number at the start of a sector, counted from the end."""

    def make() -> bytes:
        image = f.vmdk_stream()
        return put(image, len(image) - sector * 512, struct.pack("<I", value))

    return make


def _mbr(*entries: tuple[int, int, int, int], **more: bytes) -> Make:
    return lambda: f.mbr(*entries, **more).ljust(f.SIZE, b"\0")


_EE = (0, 0xEE, 1, f.SECTORS - 1)

#: What is wrong, and the codes of what is unsafe about it.
HOSTILE: dict[str, tuple[Make, set[str]]] = {
    # qcow2: what it names
    "backing": (_backing(b"base.img"), {"backing-file"}),
    "backing without a format": (
        _backing(b"base.img", None), {"backing-file", "backing-format"},
    ),
    "backing absolute": (_backing(b"/etc/passwd"), {"backing-file", "name-absolute"}),
    "backing json": (_backing(b'json:{"driver":"null-co"}'), {"backing-file", "name-json"}),
    "backing protocol": (_backing(b"nbd://host/x"), {"backing-file", "name-protocol"}),
    "backing outside": (_backing(b"../../x"), {"backing-file", "name-outside"}),
    "backing device": (_backing(b"/dev/sda"), {"backing-file", "name-absolute", "name-device"}),
    "backing control": (_backing(b"a\x1b[2J\nb"), {"backing-file", "name-control"}),
    "backing no text": (_backing(b"\xff\xfe"), {"backing-file", "name-control"}),
    "data file": (_external(b"data.raw"), {"data-file"}),
    "data file absolute": (_external(b"/etc/shadow"), {"data-file", "name-absolute"}),
    "data file unnamed": (_external(None), {"data-file"}),
    "backing in a bad header": (
        lambda: qcow2(backing=b"/etc/passwd", header={"crypt_method": 9}),
        {"backing-file", "name-absolute", "unsupported-feature"},
    ),
    # qcow2: the header
    "unknown bits": (_unknown_bit, {"unknown-feature"}),
    "version 4": (_qcow2(version=4), {"unsupported-feature"}),
    "marked corrupt": (_qcow2(incompatible_features=2), {"marked-corrupt"}),
    "cluster bits 8": (_qcow2(cluster_bits=8), {"corrupt"}),
    "cluster bits 22": (_qcow2(cluster_bits=22), {"corrupt"}),
    "refcount order 7": (_qcow2(refcount_order=7), {"corrupt"}),
    "header length 96": (_qcow2(header_length=96), {"corrupt"}),
    "compression bit": (_qcow2(incompatible_features=8), {"corrupt"}),
    "size 2^63": (_qcow2(size=1 << 63), {"corrupt"}),
    "L1 too small": (_qcow2(l1_size=0), {"corrupt"}),
    "L1 too large": (_qcow2(l1_size=(32 << 20) // 8 + 1), {"corrupt"}),
    "encryption method 3": (_qcow2(crypt_method=3), {"unsupported-feature"}),
    "no LUKS header": (_qcow2(crypt_method=2), {"luks-missing"}),
    "raw data file bit alone": (_qcow2(autoclear_features=2), {"corrupt"}),
    "name past the cluster": (
        _qcow2(backing_file_offset=70000, backing_file_size=4), {"corrupt"},
    ),
    "name of 1024 bytes": (
        _qcow2(backing_file_offset=4096, backing_file_size=1024),
        {"corrupt", "backing-file", "name-long", "name-control"},
    ),
    # qcow2: tables
    "L1 outside": (_qcow2(l1_table_offset=1 << 40), {"table-outside", "corrupt"}),
    "L1 over the header": (
        _qcow2(l1_table_offset=0), {"table-overlap", "table-outside", "corrupt"},
    ),
    "refcount table outside": (_qcow2(refcount_table_offset=1 << 40), {"table-outside"}),
    "L2 outside": (_l1(1 << 40), {"table-outside", "corrupt"}),
    "L2 entry outside": (_l2(1 << 40), {"data-outside"}),
    "L2 entry outside, copied": (_l2(1 << 63 | 1 << 40), {"data-outside"}),
    "L2 entry outside, zeros": (_l2(1 << 40 | 1), {"data-outside"}),
    "L2 entry outside, compressed": (_l2(1 << 62 | 1 << 40), {"data-outside"}),
    "L2 entry outside, last": (
        _l2(1 << 40, place=65536 - 8), {"data-outside"},
    ),
    "L2 entry outside, extended": (
        _l2(1 << 40, 1, place=16, extended_l2=True), {"data-outside"},
    ),
    "L2 unaligned": (_l1(0x10200), {"corrupt"}),
    "L2 twice": (_l1(0x20000, 0x20000), {"table-shared"}),
    "snapshot table outside": (
        _qcow2(nb_snapshots=1, snapshots_offset=1 << 40), {"corrupt"},
    ),
    "snapshot L1 outside": (_snapshots(l1_table_offset=1 << 40), {"table-outside"}),
    "snapshot L1 unaligned": (_snapshots(l1_table_offset=512), {"corrupt"}),
    "snapshot L1 too large": (_snapshots(l1_size=(32 << 20) // 8 + 1), {"corrupt"}),
    "snapshot extra data": (_snapshots(extra_data_size=1025), {"corrupt"}),
    # LUKS
    "luks version 3": (lambda: luks1(version=3), {"unsupported-feature"}),
    "luks payload outside": (lambda: luks1(payload=1 << 20), {"luks-payload"}),
    "luks iterations": (lambda: luks1(iterations=0xFFFFFFFF), {"corrupt"}),
    "luks stripes": (lambda: luks1(stripes=1), {"corrupt"}),
    "luks cipher": (lambda: luks1(cipher=b"rot13"), {"unsupported-feature"}),
    "luks without keys": (lambda: luks1(active=0xDEAD), {"luks-keys"}),
    "luks2 checksum": (lambda: put(f.luks2(), 5000, b"x"), {"luks-checksum"}),
    "luks2 size": (lambda: f.luks2(size=4096), {"corrupt"}),
    "luks2 algorithm": (lambda: f.luks2(algorithm=b"md5"), {"unsupported-feature"}),
    # Raw disks
    "MBR flags": (_mbr((0x33, 0x83, 1, 1)), {"mbr-flags"}),
    "MBR partition outside": (_mbr((0, 0x83, 1, f.SECTORS)), {"partition-outside"}),
    "MBR protects nothing": (_mbr(_EE), {"gpt-missing"}),
    "MBR protects elsewhere": (_mbr((0, 0xEE, 2, 9)), {"gpt-missing", "mbr-protective"}),
    "hybrid MBR": (
        lambda: put(f.gpt_disk(), 0, f.mbr(_EE, (0, 0x83, 64, 100))), {"mbr-hybrid"},
    ),
    "GPT header checksum": (lambda: put(f.gpt_disk(), 512 + 60, b"x"), {"gpt-header-crc"}),
    "GPT header size": (lambda: put(f.gpt_disk(), 512 + 12, b"\1"), {"gpt-header"}),
    "GPT table checksum": (lambda: put(f.gpt_disk(), 1024 + 60, b"x"), {"gpt-table-crc"}),
    "GPT header of another place": (
        lambda: put(
            f.gpt_disk(), 512, f.gpt_header(5, f.SECTORS - 1, 2, f.gpt_disk()[1024 : 34 * 512])
        ),
        {"gpt-header"},
    ),
    "GPT partition outside": (
        lambda: f.gpt_disk((64, f.SECTORS - 34))[: f.SIZE // 2], {"partition-outside"},
    ),
    "GPT partition unusable": (lambda: f.gpt_disk((3, 9)), {"gpt-partition"}),
    "GPT table too large": (lambda: f.gpt_disk(count=1 << 30), {"gpt-table"}),
    "GPT entries too small": (lambda: f.gpt_disk(size=64), {"gpt-table"}),
    "GPT copy differs": (
        lambda: put(f.gpt_disk(), f.SIZE - 512 + 56, b"another disk"), {"gpt-header-crc"},
    ),
    "GPT copy of another table": (lambda: f.gpt_copy(crc=1), {"gpt-backup-differs"}),
    "GPT copy with other usable sectors": (lambda: f.gpt_copy(first=40), {"gpt-backup-differs"}),
    "GPT copy with more entries": (lambda: f.gpt_copy(count=999_999), {"gpt-backup-differs"}),
    "GPT copy of another revision": (lambda: f.gpt_copy(revision=2), {"gpt-backup-differs"}),
    "GPT copy of another first": (lambda: f.gpt_copy(other=9), {"gpt-backup-differs"}),
    "GPT copy of another place": (lambda: f.gpt_copy(own=77), {"gpt-header"}),
    "GPT copy header size": (lambda: put(f.gpt_disk(), f.SIZE - 512 + 12, b"\1"), {"gpt-header"}),
    "GPT copy entries elsewhere": (
        lambda: f.gpt_copy(entries=100), {"gpt-table", "gpt-table-crc"},
    ),
    "GPT copy table checksum": (
        lambda: put(f.gpt_disk(), f.SIZE - 33 * 512 + 32, b"another"), {"gpt-table-crc"},
    ),
    "GPT copy elsewhere, and another at the end": (
        lambda: f.gpt_disk() + bytes(4096) + f.gpt_copy(crc=1)[-512:],
        {"gpt-backup-differs", "gpt-header"},
    ),
    "GPT copy nowhere, and another at the end": (
        lambda: put(
            f.gpt_copy(crc=1), 512, f.gpt_header(1, 1 << 50, 2, f.gpt_disk()[1024 : 34 * 512])
        ),
        {"gpt-backup-differs"},
    ),
    "GPT entries in a partition": (
        lambda: f.gpt_disk(first=20), {"gpt-table"},
    ),
    "GPT beside an MBR": (
        lambda: put(f.gpt_disk(), 0, f.mbr((0, 0x83, 64, 100))), {"mbr-hybrid"},
    ),
    "GPT for either size of sector": (
        lambda: put(f.gpt_disk(), 4096, f.gpt_disk()[512:604]), {"gpt-header", "gpt-table-crc"},
    ),
    # VMDK
    "flat": (_flat('RW 8192 FLAT "disk-flat.vmdk" 0'), {"vmdk-kind", "extent"}),
    "flat absolute": (
        _flat('RW 8192 FLAT "/etc/passwd" 0'), {"vmdk-kind", "extent", "name-absolute"},
    ),
    "flat device": (
        _flat(r'RW 8192 FLAT "\\.\PhysicalDrive0" 0'),
        {"vmdk-kind", "extent", "name-device", "name-absolute"},
    ),
    "no extents": (_flat(""), {"vmdk-kind", "vmdk-description"}),
    "zero extent": (_flat("RW 8192 ZERO"), {"vmdk-kind"}),
    "nonsense": (_flat("RW 8192 ZERO\nopen sesame"), {"vmdk-kind", "vmdk-description"}),
    "sparse names a path": (
        _inner('RW 8192 SPARSE "/etc/passwd"'), {"extent", "name-absolute"},
    ),
    "sparse names a flat file": (_inner('RW 8192 FLAT "x" 0'), {"extent"}),
    "sparse of another kind": (
        _inner('RW 8192 SPARSE "x"', "twoGbMaxExtentSparse"), {"vmdk-kind"},
    ),
    "sparse without capacity": (
        _inner('RW 8192 FLAT "/etc/passwd" 0', "monolithicFlat", capacity=0),
        {"vmdk-kind", "extent", "name-absolute"},
    ),
    "vmdk parent": (
        lambda: f.vmdk(
            text=f.description(parent="12345678", more='parentFileNameHint="/x/base.vmdk"')
        ),
        {"parent", "name-absolute"},
    ),
    "vmdk parent in a comment": (
        lambda: f.vmdk(text=f.description(more='# parentFileNameHint="base.vmdk"')), {"parent"},
    ),
    "vmdk parent behind the description": (
        lambda: f.vmdk(
            text=f.description(more="#" * 600 + '\n# parentFileNameHint="base.vmdk"'), length=1
        ),
        {"parent"},
    ),
    "vmdk parent, and the header knows of no description": (
        lambda: f.vmdk(text=_CHILD, description=0), {"parent", "vmdk-description"},
    ),
    "vmdk parent, and the description has no length": (
        lambda: f.vmdk(text=_CHILD, length=0), {"parent"},
    ),
    "vmdk parent alone, and the header knows of no description": (
        lambda: f.vmdk(text=b'\1parentFileNameHint="base.vmdk"', description=0),
        {"parent", "vmdk-description", "vmdk-kind"},
    ),
    "vmdk parent, and the header points elsewhere": (
        lambda: put(f.vmdk(text=_CHILD, description=256), 256 * 512, f.description()),
        {"parent", "vmdk-description"},
    ),
    "vmdk parent elsewhere": (
        lambda: put(f.vmdk(description=256), 256 * 512, _CHILD), {"parent", "vmdk-description"},
    ),
    "vmdk description elsewhere": (
        lambda: put(f.vmdk(text=b"", description=256), 256 * 512, f.description()),
        {"vmdk-description"},
    ),
    "vmdk stream with a parent, and the header knows of no description": (
        lambda: put(f.vmdk_stream(text=_CHILD, description=0), 28, bytes(8)),
        {"parent", "vmdk-description"},
    ),
    "sparse without capacity, and a long description": (
        _inner(
            "# \n" * 4000 + 'RW 8192 FLAT "/etc/passwd" 0', "monolithicFlat", capacity=0,
            grain=1, directory=1,
        ),
        {"vmdk-kind", "extent", "name-absolute"},
    ),
    "vmdk version": (lambda: f.vmdk(version=9), {"vmdk-version"}),
    "vmdk flags": (lambda: f.vmdk(flags=1 << 30 | 3), {"unknown-feature"}),
    "vmdk grain": (lambda: f.vmdk(grain=3), {"corrupt"}),
    "vmdk directory outside": (lambda: f.vmdk(directory=1 << 40), {"table-outside"}),
    "first table elsewhere": (_stream_with(4, 128), {"vmdk-order"}),
    "first grain elsewhere": (_stream_with(9, 129), {"vmdk-order"}),
    "vmdk directory too far out": (lambda: f.vmdk(directory=1 << 60), {"table-outside"}),
    "vmdk table outside": (lambda: put(f.vmdk(), 26 * 512 + 2, b"\1"), {"table-outside"}),
    "vmdk table twice": (
        lambda: put(f.vmdk(capacity=2 * 65536), 26 * 512 + 4, b"\x1b"), {"table-shared"},
    ),
    "ESX": (lambda: b"COWD".ljust(4096, b"\0"), {"vmdk-kind"}),
    "ESX parent": (lambda: b"COWD".ljust(512, b"\0") + _CHILD, {"vmdk-kind", "parent"}),
    "footer capacity": (lambda: f.vmdk_stream(capacity=1 << 30), {"vmdk-footer"}),
    "footer description": (lambda: f.vmdk_stream(description=40), {"vmdk-footer"}),
    "footer to a footer": (lambda: f.vmdk_stream(directory=(1 << 64) - 1), {"vmdk-footer"}),
    "no end of the stream": (lambda: f.vmdk_stream() + bytes(range(256)) * 2, {"vmdk-footer"}),
    "no footer": (lambda: f.vmdk_stream() + bytes(1536), {"vmdk-footer"}),
    # VDI
    "vdi parent": (lambda: f.vdi(parent=f.PARENT_ID.bytes_le, kind=4), {"vdi-kind", "parent"}),
    "vdi kind": (lambda: f.vdi(kind=7), {"vdi-kind"}),
    "vdi version": (lambda: f.vdi(version=0x20002), {"vdi-version"}),
    "vdi blocks": (lambda: f.vdi(blocks=2), {"corrupt"}),
    "vdi block size": (lambda: f.vdi(block=1000), {"corrupt"}),
    "vdi map outside": (
        lambda: f.vdi(data=1 << 30, blocks=1 << 27), {"table-outside", "data-outside"},
    ),
    "vdi blocks outside": (lambda: f.vdi(data=1 << 31), {"data-outside"}),
    "vdi map over data": (lambda: f.vdi(data=512), {"table-overlap"}),
    "vdi block twice": (lambda: put(f.vdi(), 516, bytes(4)), {"table-shared"}),
    "vdi block outside": (lambda: put(f.vdi(), 516, b"\0\0\1\0"), {"data-outside"}),
    # VHD
    "vhd block twice": (lambda: put(f.vhd_dynamic(), 2052, b"\0\0\0\x08"), {"table-shared"}),
    "vhd block outside": (lambda: put(f.vhd_dynamic(), 2052, b"\1\0\0\0"), {"data-outside"}),
    "vhd block over the header": (lambda: put(f.vhd_dynamic(), 2052, bytes(4)), {"table-overlap"}),
    "vhdx block twice": (
        lambda: put(f.vhdx(), (3 << 20) + 8, struct.pack("<Q", 4 << 20 | 6)), {"table-shared"},
    ),
    "vhdx block outside": (
        lambda: put(f.vhdx(), (3 << 20) + 8, struct.pack("<Q", 1 << 40 | 6)), {"data-outside"},
    ),
    "vhdx block over the metadata": (
        lambda: put(f.vhdx(), (3 << 20) + 8, struct.pack("<Q", 2 << 20 | 6)), {"table-overlap"},
    ),
    "parallels block twice": (lambda: put(f.parallels(), 68, b"\1"), {"table-shared"}),
    "parallels block outside": (lambda: put(f.parallels(), 70, b"\1"), {"data-outside"}),
    "qed table twice": (
        lambda: put(f.qed(), 4104, struct.pack("<Q", 12288)), {"table-shared"},
    ),
    "qed table unaligned": (lambda: put(f.qed(), 4104, b"\1"), {"corrupt"}),
    "qcow table twice": (lambda: put(f.qcow(), 2056, struct.pack(">Q", 4096)), {"table-shared"}),
    "qcow table outside": (lambda: put(f.qcow(), 2056, b"\0\1"), {"table-outside"}),
    "vhd parent": (
        lambda: f.vhd_dynamic(
            kind=4, parent="base.vhd", locator="..\\base.vhd".encode("utf-16-le")
        ),
        {"parent", "name-outside"},
    ),
    "vhd checksum": (lambda: put(f.vhd_fixed(), f.SIZE + 100, b"x"), {"vhd-checksum"}),
    "vhd kind": (lambda: f.vhd_dynamic(kind=9), {"vhd-kind"}),
    "vhd version": (lambda: f.vhd_fixed(version=2), {"vhd-version"}),
    "vhd footers differ": (
        lambda: f.vhd_dynamic()[:-512] + f.vhd_footer(3, 512, size=1 << 30), {"vhd-footer"},
    ),
    "vhd without a footer": (lambda: f.vhd_dynamic()[:-512], {"vhd-footer"}),
    "vhd larger than the file": (lambda: f.vhd_fixed(size=1 << 40), {"data-outside"}),
    "vhd too few blocks": (lambda: f.vhd_dynamic(size=1 << 40), {"corrupt"}),
    # VHDX
    "vhdx parent": (
        lambda: f.vhdx(
            parent={"parent_linkage": "{1}", "relative_path": r"..\a", "volume_path": r"\\?\V\a"}
        ),
        {"parent", "name-outside", "name-device", "name-absolute"},
    ),
    "vhdx headers": (
        lambda: put(put(f.vhdx(), 65536 + 8, b"x"), 131072 + 8, b"x"), {"vhdx-header"},
    ),
    "vhdx region tables": (
        lambda: put(put(f.vhdx(), 196608 + 99, b"x"), 262144 + 99, b"x"), {"vhdx-regions"},
    ),
    "vhdx unknown region": (
        lambda: f.vhdx(regions=(("11111111-2222-3333-4444-555555555555", 4 << 20, 1),)),
        {"unknown-feature"},
    ),
    "vhdx unknown item": (
        lambda: f.vhdx(items=(("11111111-2222-3333-4444-555555555555", b"x", 4),)),
        {"unknown-feature"},
    ),
    "vhdx block size": (lambda: f.vhdx(block=3 << 20), {"corrupt"}),
    "vhdx sector size": (lambda: f.vhdx(sector=513), {"corrupt"}),
    "vhdx log": (lambda: f.vhdx(log=True), {"vhdx-log"}),
    "vhdx version": (lambda: f.vhdx(version=2), {"vhdx-version"}),
    # QEMU's older ones
    "qed backing": (
        lambda: f.qed(backing=b"/etc/passwd"),
        {"backing-file", "backing-format", "name-absolute"},
    ),
    "qed raw backing": (lambda: f.qed(backing=b"base", features=5), {"backing-file"}),
    "qed features": (lambda: f.qed(features=8), {"unknown-feature"}),
    "qed cluster": (lambda: f.qed(cluster=1000), {"corrupt"}),
    "qed L1 outside": (lambda: f.qed(l1=1 << 40), {"table-outside"}),
    "qed name outside": (lambda: f.qed(features=1, name=4000, length=1000), {"backing-file"}),
    "qcow backing": (
        lambda: f.qcow(backing=b"nbd:x:1"), {"backing-file", "backing-format", "name-protocol"},
    ),
    "qcow bits": (lambda: f.qcow(bits=20), {"corrupt"}),
    "qcow encryption": (lambda: f.qcow(crypt=7), {"unsupported-feature"}),
    "qcow L1 outside": (lambda: f.qcow(l1=1 << 40), {"table-outside"}),
    # Others
    "parallels blocks": (lambda: f.parallels(entries=1), {"corrupt"}),
    "parallels block size": (lambda: f.parallels(block=0), {"corrupt"}),
    "parallels extension": (lambda: f.parallels(extension=1 << 40), {"table-outside"}),
    "bochs changes": (lambda: f.bochs(subtype=b"Undoable"), {"bochs-kind"}),
    "bochs catalogue": (lambda: f.bochs(catalog=1 << 30), {"table-outside"}),
    "bochs extents": (lambda: f.bochs(extent=1000), {"corrupt"}),
    "cloop blocks": (lambda: f.cloop(block_size=1000), {"corrupt"}),
    "cloop table outside": (lambda: f.cloop(blocks=200_000), {"table-outside", "corrupt"}),
    "cloop offsets": (lambda: put(f.cloop(), 144, b"\xff" * 8), {"corrupt"}),
    "iso cut off": (lambda: f.iso(blocks=65), {"data-outside"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    make, expected = HOSTILE[name]
    found = judge(make(), cuts=(4096,))
    assert codes(found) == expected, found.problems
    assert found.safe == (not expected)
    json.dumps(found.to_dict())


def test_unknown_features_have_the_names_that_the_image_gives_them() -> None:
    texts = {problem.text for problem in judge(_unknown_bit()).problems}
    assert "It needs the unknown feature: frobnication" in texts
    assert any("20000000000" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "role", "stored", "format"),
    [
        ("backing", "backing-file", "base.img", "raw"),
        ("backing without a format", "backing-file", "base.img", None),
        ("backing no text", "backing-file", "\udcff\udcfe", "raw"),
        ("backing in a bad header", "backing-file", "/etc/passwd", None),
        ("data file", "data-file", "data.raw", "raw"),
        ("flat absolute", "extent", "/etc/passwd", None),
        ("vmdk parent in a comment", "parent", "base.vmdk", None),
        ("vmdk parent, and the header points elsewhere", "parent", "base.vmdk", None),
        ("sparse without capacity, and a long description", "extent", "/etc/passwd", None),
        ("ESX parent", "parent", "base.vmdk", None),
        ("vdi parent", "parent", str(f.PARENT_ID), None),
        ("vhd parent", "parent", "..\\base.vhd", None),
        ("vhdx parent", "parent", r"\\?\V\a", None),
        ("qed backing", "backing-file", "/etc/passwd", None),
        ("qcow backing", "backing-file", "nbd:x:1", None),
    ],
)
def test_names_are_told(name: str, role: str, stored: str, format: str | None) -> None:
    names = judge(HOSTILE[name][0]()).names
    assert (role, stored, format) in [(one.role, one.name, one.format) for one in names]


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (qcow2(header={"incompatible_features": 1}), "dirty"),
        (qcow2(header={"crypt_method": 1}), "weak-encryption"),
        (f.mbr().ljust(f.SIZE, b"\0"), "mbr-empty"),
        (f.mbr((0, 0x83, 1, 99), (0, 0x83, 50, 99)).ljust(f.SIZE, b"\0"), "partition-overlap"),
        (put(f.gpt_disk(), 447, b"\0\1\0"), "mbr-protective-chs"),
        (put(f.gpt_disk(), 0, bytes(512)), "gpt-unprotected"),
        (put(f.gpt_disk(), 0, f.mbr()), "gpt-unprotected"),
        (f.gpt_disk() + bytes(1 << 20), "gpt-backup"),
        (put(f.gpt_disk(), f.SIZE - 512, bytes(512)), "gpt-backup"),
        (f.vhd_fixed(saved=1), "vhd-saved"),
        (put(f.vhdx(), 65536 + 8, b"x"), "vhdx-header"),
        (f.parallels(**{"in use": 0x746F6E59}), "dirty"),
        (f.qed(features=2), "dirty"),
        (f.qcow(crypt=1), "weak-encryption"),
    ],
)  # fmt: skip
def test_warnings(image: bytes, code: str) -> None:
    found = judge(image)
    assert code in codes(found, Severity.WARNING)
    assert found.safe


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base.qcow2", set()), ("dir/base.qcow2", set()), ("./a:b", set()), ("файл", set()),
        ("a b", set()), ("", {"name-empty"}), ("/x", {"name-absolute"}),
        ("\\x", {"name-absolute"}), ("C:\\x", {"name-absolute"}), ("c:/x", {"name-absolute"}),
        ("..", {"name-outside"}), ("a/../../b", {"name-outside"}), ("a\\..\\b", {"name-outside"}),
        ("json:{}", {"name-json"}), ("nbd:unix:/x", {"name-protocol"}),
        ("http://x/", {"name-protocol"}), ("file:///etc/passwd", {"name-protocol"}),
        ("file:/etc/passwd", {"name-absolute"}), ("file:x", set()), (":x", {"name-protocol"}),
        ("fat:rw:.", {"name-protocol"}), ("host_device:/dev/sda", {"name-protocol"}),
        ("/dev/fd/0", {"name-absolute", "name-device"}),
        ("//proc/self/mem", {"name-absolute", "name-device"}),
        ("/sys/kernel", {"name-absolute", "name-device"}),
        ("\\\\.\\PhysicalDrive0", {"name-absolute", "name-device"}),
        ("\\\\server\\share", {"name-absolute"}), ("a\nb", {"name-control"}),
        ("a\u202eb", {"name-control"}), ("\udcff", {"name-control"}), ("x" * 1024, {"name-long"}),
        ("file:../x", {"name-outside"}), ("a" * 1023, set()),
    ],
)  # fmt: skip
def test_names(name: str, expected: set[str]) -> None:
    assert {code for code, _ in oddities(name)} == expected


def test_what_is_expected_of_it() -> None:
    image = qcow2()
    assert judge(image, format="qcow2", max_virtual_size=f.SIZE).safe
    assert codes(judge(image, format="raw")) == {"wrong-format"}
    assert codes(judge(image, max_virtual_size=f.SIZE - 1)) == {"virtual-size"}
    assert judge(f.vhd_fixed(), format="vpc").safe
    # Told to be small, and large for whoever takes it for raw.
    grown = bytes(f.SIZE) + f.vhd_fixed()
    assert judge(f.vhd_fixed(), max_virtual_size=f.SIZE).safe
    assert codes(judge(grown, max_virtual_size=f.SIZE)) == {"virtual-size"}
    assert codes(judge(f.iso() + bytes(4096), max_virtual_size=64 * 2048)) == {"virtual-size"}
    assert judge(f.gpt_disk(), format="raw").safe
    assert judge(f.gpt_disk(), format="gpt").safe
    assert judge(f.iso(), format="iso").safe
    assert judge(f.iso(), format="raw").safe
    assert codes(judge(f.mbr_disk(), format="iso")) == {"wrong-format"}
    assert codes(judge(b"QFI\xfb\0\0\0\2", max_virtual_size=1)) == {"virtual-size", "corrupt"}


def test_what_is_accepted_does_not_count() -> None:
    image = HOSTILE["backing"][0]()
    found = judge(image, accept=("backing-file",))
    assert found.safe
    assert "backing-file" in codes(found, Severity.WARNING)
    outside = HOSTILE["backing outside"][0]()
    assert codes(judge(outside, accept=("backing-file",))) == {"name-outside"}


def test_thousands_of_problems_are_not_kept() -> None:
    extents = "\n".join(f'RW 1 FLAT "../{number}" 0' for number in range(20_000))
    found = judge(f.description("monolithicFlat", extents))
    assert len(found.names) <= 256
    assert len(found.problems) <= 300
    assert {"names-many", "more"} <= codes(found)
