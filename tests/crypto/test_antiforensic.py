"""The anti-forensic splitter."""

from __future__ import annotations

import os

import pytest

from imgtool.crypto.antiforensic import merge, split


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("length", [16, 24, 32, 48, 64])
def test_split_and_merged(length: int, digest: str) -> None:
    key = os.urandom(length)
    material = split(key, 50, digest)
    assert len(material) == 50 * length
    assert merge(material, 50, digest) == key
    assert split(key, 50, digest) != material


@pytest.mark.parametrize("place", [0, 31, 32, 700, 49 * 32 - 1])
def test_every_bit_counts(place: int) -> None:
    key = os.urandom(32)
    material = bytearray(split(key, 50, "sha256"))
    material[place] ^= 1
    wrong = merge(bytes(material), 50, "sha256")
    different = bin(int.from_bytes(wrong, "big") ^ int.from_bytes(key, "big")).count("1")
    assert different > 60
