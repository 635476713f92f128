"""Digests of images that qemu made, next to what qemu-img makes of them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

import imgtool
from tests.compat.recipes import recipes
from tests.compat.workshop import Workshop
from tests.kit.tools import require_tool
from tests.kit.treehash import tree_hash

_NAMES = (
    "cluster-512",
    "v2-cluster-64k",
    "extended-64k",
    "unaligned",
    "zlib-extended",
    "zstd",
    "overlay-larger",
    "overlay-on-raw",
    "three-deep",
    "data-file",
    "preallocated-zeroed",
    "raw-tail-hole",
)


@pytest.mark.parametrize("name", _NAMES)
def test_contents(name: str, tmp_path: Path) -> None:
    (recipe,) = (recipe for recipe in recipes() if recipe.name == name)
    workshop = Workshop(tmp_path / "images")
    image = recipe.build(workshop)
    raw = tmp_path / "raw"
    workshop.img("convert", "-f", recipe.format, "-O", "raw", str(image), str(raw))
    disk = raw.read_bytes()
    assert imgtool.hash(image, format=recipe.format) == tree_hash(disk)
    assert imgtool.hash(image, format=recipe.format, raw=True) == hashlib.sha256(disk).hexdigest()


def test_snapshots(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "images")
    image = workshop.directory / "a.qcow2"
    workshop.create(image, "qcow2", "3M", "")
    for number in (1, 2):
        workshop.io(image, "qcow2", f"write -P {number} 1000k 100k")
        workshop.img("snapshot", "-c", f"s{number}", str(image))
    workshop.io(image, "qcow2", "discard 0 3M")
    digests = [imgtool.hash(image, snapshot=name) for name in ("s1", "s2")]
    for number, digest in enumerate(digests, 1):
        disk = bytearray(3 << 20)
        disk[1000 << 10 : 1100 << 10] = bytes([number]) * (100 << 10)
        assert digest == tree_hash(bytes(disk))
    assert imgtool.hash(image) == tree_hash(bytes(3 << 20))


@pytest.mark.parametrize("name", ["sha256", "sha512", "sha1", "md5"])
def test_plain_digests_are_the_tools(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"sectors!" * 64 * 5000 + bytes(1 << 20))
    imgtool.convert(tmp_path / "a.raw", tmp_path / "a.qcow2", compress=True)
    tool = require_tool(f"{name}sum")
    done = subprocess.run([tool, "a.raw"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == imgtool.hash(tmp_path / "a.qcow2", name, raw=True)
