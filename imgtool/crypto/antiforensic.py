"""The anti-forensic splitter: a key spread so wide that losing any part of it loses it all.

Source: the LUKS1 On-Disk Format Specification 1.2.3, section 2.4 and figure 2.
"""

from __future__ import annotations

import hashlib
import os


def split(key: bytes, stripes: int, hash: str) -> bytes:
    """Return ``stripes`` times as many bytes, from which :func:`merge` makes ``key`` again."""
    material = os.urandom(len(key) * (stripes - 1))
    return material + _xor(_diffused(material, len(key), hash), key)


def merge(material: bytes, stripes: int, hash: str) -> bytes:
    """Return the key that was split into ``stripes`` stripes of ``material``."""
    length = len(material) // stripes
    last = length * (stripes - 1)
    return _xor(_diffused(material[:last], length, hash), material[last : last + length])


def _diffused(material: bytes, length: int, hash: str) -> bytes:
    """All stripes mixed into one, which every bit of each of them changes."""
    mixed = bytes(length)
    for start in range(0, len(material), length):
        mixed = _diffuse(_xor(mixed, material[start : start + length]), hash)
    return mixed


def _diffuse(block: bytes, hash: str) -> bytes:
    """Hash each digest's length of ``block``, with its number in front of it."""
    step = hashlib.new(hash).digest_size
    pieces = [
        hashlib.new(hash, number.to_bytes(4, "big") + block[start : start + step]).digest()
        for number, start in enumerate(range(0, len(block), step))
    ]
    return b"".join(pieces)[: len(block)]


def _xor(one: bytes, other: bytes) -> bytes:
    number = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return number.to_bytes(len(one), "big")
