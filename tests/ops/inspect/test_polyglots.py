"""Files that more than one format claims."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kit import foreign as f
from tests.kit.corrupt import put
from tests.ops.inspect.judging import codes, judge, luks1, qcow2

QCOW2 = qcow2()
_TABLE = f.mbr((0x80, 0x83, 1, 100))[440:]

#: What is what: the bytes, the format that it is foremost, and the others at head or tail.
POLYGLOTS: dict[str, tuple[Callable[[], bytes], str, set[str]]] = {
    "qcow2, vhd at the end": (lambda: QCOW2 + f.vhd_footer(2, (1 << 64) - 1), "qcow2", {"vhd"}),
    "qcow2, dmg at the end": (lambda: QCOW2 + f.dmg()[-512:], "qcow2", {"dmg"}),
    "vhd with qcow2 in front": (lambda: f.vhd_fixed(QCOW2), "qcow2", {"vhd"}),
    "iso with qcow2 in front": (lambda: f.iso(head=QCOW2[:512]), "qcow2", {"iso9660"}),
    "iso with vmdk in front": (lambda: f.iso(head=f.vmdk_header()), "vmdk", {"iso9660"}),
    "iso with a description in front": (
        lambda: f.iso(head=f.description("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0')),
        "vmdk",
        {"iso9660"},
    ),
    "iso with luks in front": (lambda: f.iso(head=luks1()[:592]), "luks", {"iso9660"}),
    "iso with vhdx in front": (lambda: put(f.vhdx(), 32768, f.iso()[32768:40960]), "vhdx",
                               {"iso9660"}),
    "vdi with vmdk in front": (
        lambda: put(f.vdi(), 0, f.vmdk_header()[:64]), "vdi", {"vmdk"},
    ),
    "vmdk description, vhd at the end": (
        lambda: f.vhd_fixed(f.description("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0')),
        "vmdk",
        {"vhd"},
    ),
    "vdi, vhd at the end": (lambda: f.vdi() + f.vhd_footer(2, (1 << 64) - 1), "vdi", {"vhd"}),
    "vdi with an MBR": (lambda: put(f.vdi(), 440, _TABLE), "vdi", {"mbr"}),
    "vhdx with an MBR": (lambda: put(f.vhdx(), 440, _TABLE), "vhdx", {"mbr"}),
    "qed with an MBR": (lambda: put(f.qed(), 440, _TABLE), "qed", {"mbr"}),
    "qcow2 with an MBR": (lambda: put(QCOW2, 440, _TABLE), "qcow2", {"mbr"}),
    "vmdk with a GPT": (lambda: put(f.vmdk(), 4096, b"EFI PART"), "vmdk", {"gpt"}),
}  # fmt: skip


@pytest.mark.parametrize("name", POLYGLOTS)
def test_polyglot(name: str) -> None:
    make, kind, others = POLYGLOTS[name]
    found = judge(make())
    assert not found.safe
    assert "polyglot" in codes(found)
    assert found.format == kind
    assert {claim.format for claim in found.claims if claim.place != "contents"} == {
        kind,
        *others,
    }


def test_a_polyglot_tells_of_every_name() -> None:
    make, _, _ = POLYGLOTS["vmdk description, vhd at the end"]
    assert [name.name for name in judge(make()).names] == ["/etc/passwd"]


_INSIDE = {
    "vmdk": f.vmdk, "vmdk-stream": f.vmdk_stream, "vdi": f.vdi, "vhd": f.vhd_dynamic,
    "vhdx": f.vhdx, "qed": f.qed, "qcow": f.qcow, "parallels": f.parallels, "cloop": f.cloop,
    "qcow-compressed": lambda guest: f.qcow(guest, compressed=True), "qcow2": qcow2,
    "qcow2-512": lambda guest: qcow2(guest[:512], cluster_bits=9),
    "qcow2-extended": lambda guest: qcow2(guest, extended_l2=True),
}  # fmt: skip


@pytest.mark.parametrize("outer", _INSIDE)
@pytest.mark.parametrize("inner", ["qcow2", "vmdk", "description", "luks", "mbr"])
def test_an_image_in_an_image(outer: str, inner: str) -> None:
    # Converted to raw, it would be what its guest wrote: an image that names files.
    guest = {
        "qcow2": QCOW2[:4096], "vmdk": f.vmdk()[:4096], "luks": luks1()[:4096],
        "description": f.description("monolithicFlat", 'RW 1 FLAT "/etc/passwd" 0'),
        "mbr": f.mbr_disk()[:4096],
    }[inner]  # fmt: skip
    found = judge(_INSIDE[outer](guest))
    if inner == "mbr":
        assert found.safe
        return
    assert [claim.format for claim in found.claims if claim.place == "contents"] == [
        "vmdk" if inner == "description" else inner
    ]
    # A guest may encrypt its disk; LUKS names no file.
    assert codes(found) == (set() if inner == "luks" else {"nested-format"})


def test_an_image_in_a_compressed_cluster() -> None:
    from tests.kit.qcow2 import ImageBuilder

    for compression in ("zlib", "zstd"):
        builder = ImageBuilder(f.SIZE, compression=compression)
        builder.compressed(0, QCOW2[:4096].ljust(65536, b"\0"))
        assert codes(judge(builder.build())) == {"nested-format"}


def test_hybrid_discs_are_no_polyglots() -> None:
    found = judge(f.iso(head=f.mbr((0x80, 0x17, 0, 1 << 20))))
    assert found.safe
    assert found.contents == ("mbr",)
