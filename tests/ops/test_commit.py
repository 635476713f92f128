"""Commit onto bases that are shorter than what lies on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.ops import commit

KiB = 1 << 10

PASSWORD = "a passphrase"

BASES: dict[str, dict[str, Any]] = {
    "raw": {},
    "qcow2": {},
    "luks": {"password": PASSWORD, "iter_time": 1},
}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("format", BASES)
def test_a_base_grows_with_zeros(tmp_path: Path, format: str, drop: bool) -> None:
    """What lay behind its end read as zeros, and is not to become an encrypted disk's noise."""
    base, overlay = tmp_path / "base.img", tmp_path / "overlay.qcow2"
    imgtool.create(base, 64 * KiB, format=format, **BASES[format])
    password = PASSWORD if format == "luks" else None
    with imgtool.open(base, format=format, writable=True, password=password) as disk:
        disk.write_at(0, b"base" * 16 * KiB)
    imgtool.create(overlay, 1024 * KiB, backing_file="base.img", backing_format=format, unsafe=True)
    with imgtool.open(overlay, writable=True, password=password) as disk:
        disk.write_at(500 * KiB, b"overlay!")
        before = disk.read_at(0, disk.size)
    assert before.count(0) == 960 * KiB - 8
    imgtool.commit(overlay, drop=drop, password=password)
    for path, kind in ((base, format), (overlay, "qcow2")):
        with imgtool.open(path, format=kind, password=password) as disk:
            assert disk.read_at(0, disk.size) == before


def test_a_chain_that_changes_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be the base is not the second below any more, but the first."""
    names = ("root", "base", "middle", "top")
    for name, below in zip(names, (None, *names), strict=False):
        backing = None if below is None else f"{below}.qcow2"
        imgtool.create(
            tmp_path / f"{name}.qcow2", 64 * KiB,
            backing_file=backing, backing_format=backing and "qcow2",
        )  # fmt: skip
    with imgtool.open(tmp_path / "top.qcow2", writable=True) as disk:
        disk.write_at(0, b"top")
    find = commit._find

    def find_and_change(device: imgtool.BlockDevice, base: str) -> int:
        depth = find(device, base)
        device.close()
        imgtool.rebase(tmp_path / "top.qcow2", "base.qcow2", "qcow2")
        return depth

    monkeypatch.setattr(commit, "_find", find_and_change)
    with pytest.raises(imgtool.ImageError, match="changed by another"):
        imgtool.commit(tmp_path / "top.qcow2", base="base.qcow2")
    for name in ("root", "base"):
        with imgtool.open(tmp_path / f"{name}.qcow2") as disk:
            assert disk.read_at(0, 3) == bytes(3)
