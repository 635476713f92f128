"""The tree hash as docs/hash.md tells it, once more and as plainly as can be."""

from __future__ import annotations

import hashlib

LEAF = 1 << 20


def tree_hash(disk: bytes, algorithm: str = "sha256") -> str:
    """The digest of a disk that holds these bytes, in hexadecimal."""

    def digest(*parts: bytes) -> bytes:
        return hashlib.new(algorithm, b"".join(parts)).digest()

    starts = range(0, max(1, len(disk)), LEAF)
    level = [digest(b"\0", disk[start : start + LEAF].ljust(LEAF, b"\0")) for start in starts]
    zero = digest(b"\0", bytes(LEAF))
    while len(level) & (len(level) - 1):
        level.append(zero)
    while len(level) > 1:
        level = [
            digest(b"\1", left, right) for left, right in zip(level[0::2], level[1::2], strict=True)
        ]
    size = len(disk).to_bytes(8, "little")
    head = b"\2imgtool-tree-1\0" + algorithm.encode() + b"\0"
    return digest(head, size, level[0]).hex()
