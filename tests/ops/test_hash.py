"""The digest of a disk: next to a reference, and the same however the disk is stored."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import imgtool
from imgtool.errors import BadOption, CorruptImage, ImageError
from imgtool.ops.hash import ALGORITHMS
from imgtool.ops.treehash import LEAF, TreeHash, leaf_digest
from imgtool.storage.memory import MemoryStorage
from tests.kit.treehash import tree_hash
from tests.test_readme import ROOT

MiB = 1 << 20

_TREES = ("sha256", "sha512", "blake2b")


def _hash(disk: bytes, algorithm: str = "sha256", *, raw: bool = False) -> str:
    return imgtool.hash(MemoryStorage(disk), algorithm, format="raw", raw=raw)


@pytest.mark.parametrize("algorithm", _TREES)
@pytest.mark.parametrize("size", [0, 512, LEAF - 512, LEAF, LEAF + 512, 5 * LEAF])
def test_the_reference_agrees(algorithm: str, size: int) -> None:
    disk = random.Random(size).randbytes(size)
    assert _hash(disk, algorithm) == tree_hash(disk, algorithm)


@given(st.lists(st.tuples(st.sampled_from("zd"), st.integers(1, 40)), max_size=6))
def test_runs_of_zeros_fold(runs: list[tuple[str, int]]) -> None:
    """However leaves of zeros are added, alone or many at once, the root is the same."""
    ones = bytearray(b"\1" * 8)
    single, folded = TreeHash("sha256"), TreeHash("sha256")
    size = 0
    for kind, count in runs:
        size += count * LEAF
        if kind == "z":
            folded.add_zeros(count)
        for _ in range(count):
            leaf = single.zero_leaf if kind == "z" else leaf_digest("sha256", ones)
            single.add(leaf)
            if kind == "d":
                folded.add(leaf)
    assert single.leaves == folded.leaves == size // LEAF
    assert folded.root(size) == single.root(size)


def test_other_contents_have_other_digests() -> None:
    """A byte, its place, the length, the algorithm: each makes a difference."""
    disks = [bytes(size) for size in (0, 512, 1024, LEAF, LEAF + 512, 2 * LEAF, 3 * LEAF, 4 * LEAF)]
    for place in (0, 511, LEAF, 3 * LEAF, 4 * LEAF - 1):
        disk = bytearray(4 * LEAF)
        disk[place] = 1
        disks.append(bytes(disk))
    digests = [_hash(disk) for disk in disks]
    assert len(set(digests)) == len(disks)


def _examples() -> list[tuple[str, str, str]]:
    """The examples of docs/hash.md: what a disk holds, the algorithm, and its digest."""
    row = re.compile(r"^\| (.+?) +\| (\w+) +\| `([0-9a-f]+)` \|$", re.MULTILINE)
    return row.findall((ROOT / "docs" / "hash.md").read_text())


_DISKS: dict[str, Callable[[Path], object]] = {
    "nothing: 0 bytes": lambda path: path.write_bytes(b""),
    "512 zeros": lambda path: path.write_bytes(bytes(512)),
    "1 MiB of 0x01": lambda path: path.write_bytes(b"\1" * MiB),
    "512 bytes of 0x01, 2 MiB of zeros, 512 bytes of 0x02": lambda path: path.write_bytes(
        b"\1" * 512 + bytes(2 * MiB) + b"\2" * 512
    ),
    "1 TiB of zeros": lambda path: imgtool.create(path, "1T"),
}


@pytest.mark.parametrize(("disk", "algorithm", "digest"), _examples())
def test_the_documented_examples(disk: str, algorithm: str, digest: str, tmp_path: Path) -> None:
    _DISKS[disk](tmp_path / "disk")
    assert imgtool.hash(tmp_path / "disk", algorithm, format="raw") == digest


def test_every_example_is_documented() -> None:
    assert {disk for disk, _, _ in _examples()} == set(_DISKS)
    assert {algorithm for _, algorithm, _ in _examples()} == set(_TREES)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_plain_digest(algorithm: str) -> None:
    disk = random.Random(1).randbytes(3 * LEAF + 512) + bytes(2 * LEAF) + b"end" * 512
    assert _hash(disk, algorithm, raw=True) == hashlib.new(algorithm, disk).hexdigest()


def _scattered(path: Path, size: int) -> bytes:
    """Write a file with data, holes and written zeros, in pieces that no cluster size fits."""
    chance = random.Random(7)
    disk = bytearray(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for start in range(0, size - 70_000, 333_312):
            data = chance.choice((chance.randbytes(70_000), bytes(70_000)))
            file.seek(start)
            file.write(data)
            disk[start : start + 70_000] = data
    return bytes(disk)


def test_how_it_is_stored_makes_no_difference(tmp_path: Path) -> None:
    disk = _scattered(tmp_path / "holes.raw", 6 * MiB + 512)
    (tmp_path / "full.raw").write_bytes(disk)
    expected, plain = tree_hash(disk), hashlib.sha256(disk).hexdigest()
    images = [tmp_path / "holes.raw", tmp_path / "full.raw"]
    for name, options in {
        "small": {"cluster_size": "512"},
        "large": {"cluster_size": "2M"},
        "old": {"compat": "0.10"},
        "extended": {"extended_l2": True},
        "full": {"preallocation": "metadata"},
        "data": {"data_file": "data.bin"},
        "zlib": {"compress": "zlib"},
        "zstd": {"compress": "zstd"},
    }.items():
        images.append(tmp_path / f"{name}.qcow2")
        imgtool.convert(tmp_path / "full.raw", images[-1], source_format="raw", **options)  # type: ignore[arg-type]
    for image in images:
        found = {
            imgtool.hash(image, format="raw" if image.suffix == ".raw" else None, workers=workers)
            for workers in (1, 2, 7)
        }
        assert found == {expected}, image.name
        assert imgtool.hash(image, raw=True) == plain, image.name


def test_chains(tmp_path: Path) -> None:
    """What is on top counts, and what shows through from a shorter base, and zeros behind it."""
    disk = bytearray(_scattered(tmp_path / "base.raw", 3 * MiB)) + bytearray(2 * MiB)
    imgtool.create(tmp_path / "top.qcow2", 5 * MiB, backing_file="base.raw", backing_format="raw")
    with imgtool.open(tmp_path / "top.qcow2", writable=True) as top:
        top.write_at(1000, b"top" * 100)
        top.write_zeroes(MiB, MiB)
        top.write_at(4 * MiB + 5, b"end")
    disk[1000:1300] = b"top" * 100
    disk[MiB : 2 * MiB] = bytes(MiB)
    disk[4 * MiB + 5 : 4 * MiB + 8] = b"end"
    assert imgtool.hash(tmp_path / "top.qcow2") == tree_hash(bytes(disk))


@pytest.mark.parametrize("name", ["a.qcow2", "a.raw"])
def test_zeros_cost_nothing(tmp_path: Path, name: str) -> None:
    image = tmp_path / name
    kind = image.suffix[1:]
    imgtool.create(image, "8T", format=kind)
    with imgtool.open(image, format=kind, writable=True) as disk:
        disk.write_at((3 << 40) + 5, b"a few bytes")
        disk.write_at((7 << 40) - 3, b"and a few")
    started = time.process_time()
    digest = imgtool.hash(image, format=kind)
    assert time.process_time() - started < 2
    # A tree of the same leaves, made by hand.
    tree = TreeHash("sha256")
    leaf = bytearray(LEAF)
    leaf[5:16] = b"a few bytes"
    tree.add_zeros(3 << 20)
    tree.add(leaf_digest("sha256", leaf))
    tree.add_zeros((7 << 20) - (3 << 20) - 2)
    tree.add(leaf_digest("sha256", bytearray(LEAF - 3) + b"and"))
    tree.add(leaf_digest("sha256", bytearray(b" a few") + bytearray(LEAF - 6)))
    tree.add_zeros((1 << 20) - 1)
    assert digest == tree.root(8 << 40).hex()


@pytest.mark.parametrize("raw", [False, True])
def test_progress(raw: bool) -> None:
    calls: list[tuple[int, int]] = []
    disk = MemoryStorage(b"\1" * (2 * LEAF) + bytes(3 * LEAF) + b"\1" * 512)
    imgtool.hash(disk, format="raw", raw=raw, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (5 * LEAF + 512, 5 * LEAF + 512)
    assert len(calls) >= 3


def test_what_is_refused() -> None:
    with pytest.raises(BadOption, match="Unknown algorithm 'crc32'"):
        _hash(b"", "crc32")
    with pytest.raises(BadOption, match="sha1 is only there for --raw"):
        _hash(b"", "sha1")


class _Broken(MemoryStorage):
    def read_into(self, offset: int, buffer: object) -> int:
        if offset == LEAF:
            raise OSError(5, "Input/output error")
        return super().read_into(offset, buffer)  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [False, True])
def test_what_cannot_be_read_is_named(raw: bool) -> None:
    with pytest.raises(ImageError, match=f"error while reading at byte {LEAF}: Input/output"):
        imgtool.hash(_Broken(b"\1" * (3 * LEAF)), format="raw", raw=raw)


def test_damage_keeps_its_type(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"abc" * 100_000 + bytes(212))
    imgtool.convert(tmp_path / "a.raw", tmp_path / "a.qcow2", compress=True)
    with imgtool.open(tmp_path / "a.qcow2") as disk:
        (first, *_) = disk._map(0, disk.size)  # type: ignore[attr-defined]
    with open(tmp_path / "a.qcow2", "r+b") as file:
        file.seek(first.host_offset)
        file.write(b"\xff" * first.encoded_length)
    with pytest.raises(CorruptImage):
        imgtool.hash(tmp_path / "a.qcow2")
