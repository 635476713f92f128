"""Secrets that are themselves encrypted: AES-256 in CBC mode, as QEMU's secrets have it."""

from __future__ import annotations

from imgtool.crypto.blockcipher import BlockCipher
from imgtool.errors import BadOption

KEY_BYTES = 32
BLOCK = 16


def unwrap(key: bytes, vector: bytes, data: bytes) -> bytes:
    """Decrypt ``data``, padded as PKCS #7 says (RFC 5652, 6.3), and return what was encrypted.

    Raises :class:`BadOption` for lengths that cannot be, and where ``key`` is the wrong one.
    """
    import numpy as np

    if len(key) != KEY_BYTES:
        raise BadOption(f"Key should be {KEY_BYTES} bytes in length")
    if len(vector) != BLOCK:
        raise BadOption(f"IV should be {BLOCK} bytes in length not {len(vector)}")
    if len(data) % BLOCK:
        raise BadOption(f"Length {len(data)} must be a multiple of block size {BLOCK}")
    chained = np.frombuffer(vector + data, np.uint64).reshape(1, -1, 2)
    blocks = BlockCipher("aes", key).decrypt(np.ascontiguousarray(chained[:, 1:]))
    padded = (blocks ^ chained[:, :-1]).tobytes()
    count = padded[-1] if padded else 0
    if not 0 < count <= BLOCK or padded[-count:] != bytes([count]) * count:
        raise BadOption("A secret cannot be decrypted: its key, or its IV, is not the right one")
    return padded[:-count]
