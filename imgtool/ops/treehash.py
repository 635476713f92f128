"""The tree hash of a disk: docs/hash.md defines it, to the byte.

A disk is cut into leaves of 1 MiB, which are the leaves of a binary tree. Subtrees of zeros have a
digest that depends on their height alone, so a run of zeros costs a logarithm of its length.
"""

from __future__ import annotations

import hashlib

#: Bytes of the disk in a leaf.
LEAF = 1 << 20

#: What every hashed message begins with, so that none can be taken for one of another kind.
_LEAF, _NODE, _ROOT = b"\0", b"\1", b"\2"

#: Named in the root: another construction has another name.
CONSTRUCTION = b"imgtool-tree-1"


def leaf_digest(algorithm: str, data: bytearray) -> bytes:
    """Return the digest of a leaf: the ``LEAF`` bytes of ``data``."""
    digest = hashlib.new(algorithm, _LEAF)
    digest.update(data)
    return digest.digest()


class TreeHash:
    """Takes the leaves of a disk in order, and gives the digest of all of them.

    ``algorithm`` is a name that hashlib knows, of a digest with a fixed length.
    """

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._leaves = 0
        # The left siblings that still wait for their right ones, highest first.
        self._waiting: list[bytes] = []
        #: Digests of subtrees of zeros, by height.
        self._zeros = [leaf_digest(algorithm, bytearray(LEAF))]

    @property
    def leaves(self) -> int:
        """How many leaves there are so far."""
        return self._leaves

    @property
    def zero_leaf(self) -> bytes:
        """The digest of a leaf of zeros."""
        return self._zeros[0]

    def add(self, digest: bytes) -> None:
        """Add the next leaf."""
        self._add(digest, 0)

    def add_zeros(self, count: int) -> None:
        """Add ``count`` leaves of zeros, in the largest subtrees that fit."""
        while count:
            height = count.bit_length() - 1
            if self._leaves:
                height = min(height, (self._leaves & -self._leaves).bit_length() - 1)
            self._add(self._zero(height), height)
            count -= 1 << height

    def root(self, size: int) -> bytes:
        """Return the digest of the disk of ``size`` bytes whose leaves have all been added."""
        height = max(self._leaves - 1, 0).bit_length()
        self.add_zeros((1 << height) - self._leaves)
        (top,) = self._waiting
        name = self._algorithm.encode("ascii")
        message = b"%s\0%s\0%s%s" % (CONSTRUCTION, name, size.to_bytes(8, "little"), top)
        return hashlib.new(self._algorithm, _ROOT + message).digest()

    def _add(self, digest: bytes, height: int) -> None:
        """Add a subtree of 2**``height`` leaves; the number of its first one is a multiple."""
        self._leaves += 1 << height
        # Every 1 that the addition carries away was a left sibling.
        while self._leaves >> height & 1 == 0:
            digest = self._node(self._waiting.pop(), digest)
            height += 1
        self._waiting.append(digest)

    def _zero(self, height: int) -> bytes:
        while len(self._zeros) <= height:
            below = self._zeros[-1]
            self._zeros.append(self._node(below, below))
        return self._zeros[height]

    def _node(self, left: bytes, right: bytes) -> bytes:
        return hashlib.new(self._algorithm, _NODE + left + right).digest()
