"""Commit onto bases that are shorter than what lies on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imgtool

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
