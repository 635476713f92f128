"""Initial vectors: from a sector's number to the block that its encryption begins with.

Source: the LUKS1 On-Disk Format Specification 1.2.3, appendix "Registry of names"; ESSIV as Clemens
Fruhwirth describes it in "New Methods in Hard Disk Encryption".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgtool.crypto.blockcipher import KEY_LENGTHS, BlockCipher
from imgtool.errors import UnsupportedFeature

if TYPE_CHECKING:
    from imgtool.crypto.workspace import Words

#: Gives the vectors of ``count`` sectors from the sector ``first`` on, one row each.
Generator = Callable[[int, int], "Words"]

GENERATORS = ("plain", "plain64", "essiv")


def generator(name: str, hash: str | None, cipher: str, key: bytes, block_size: int) -> Generator:
    """Return the generator ``name`` for disks encrypted with ``key``; ``hash`` is for ESSIV.

    Raises :class:`UnsupportedFeature` for a hash whose digest is no key of the cipher.
    """
    words = block_size // 8
    if name == "plain":
        return lambda first, count: _numbers(first, count, words, 0xFFFF_FFFF)
    if name == "plain64":
        return lambda first, count: _numbers(first, count, words, 0xFFFF_FFFF_FFFF_FFFF)
    try:
        salt = hashlib.new(hash or "", key).digest()
    except ValueError:
        raise UnsupportedFeature([f"the hash {hash}"]) from None
    if len(salt) not in KEY_LENGTHS[cipher]:
        raise UnsupportedFeature([f"{cipher} with the {len(salt)} bytes of {hash} as its key"])
    encrypt = BlockCipher(cipher, salt).encrypt
    # A copy, since the cipher's next result takes the place of this one.
    return lambda first, count: encrypt(_numbers(first, count, words, 0xFFFF_FFFF_FFFF_FFFF)).copy()


def _numbers(first: int, count: int, words: int, mask: int) -> Words:
    """Sector numbers as little-endian blocks of ``words`` times 8 bytes."""
    import numpy as np

    blocks = np.zeros((count, words), dtype="<u8")
    # Sector numbers of 64-bit offsets have 55 bits, so nothing overflows.
    blocks[:, 0] = np.arange(first, first + count, dtype=np.uint64) & np.uint64(mask)
    return blocks.view(np.uint64)
