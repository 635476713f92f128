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
    start = hashlib.new(hash)
    step = start.digest_size
    # Each piece of a digest's length is hashed with its number in front of it.
    pieces = [
        (number.to_bytes(4, "big"), slice(place, place + step))
        for number, place in enumerate(range(0, length, step))
    ]
    mixed = bytes(length)
    for stripe in range(0, len(material), length):
        block = _xor(mixed, material[stripe : stripe + length])
        digests = []
        for number, piece in pieces:
            digest = start.copy()
            digest.update(number + block[piece])
            digests.append(digest.digest())
        mixed = b"".join(digests)[:length]
    return mixed


def _xor(one: bytes, other: bytes) -> bytes:
    number = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return number.to_bytes(len(one), "big")
