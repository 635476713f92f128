"""Modes of operation over whole sectors, all of a buffer's sectors at once.

``cryptography`` would take one context, and several microseconds, for each sector of 512 bytes.
Here every mode is one pass of the block cipher over all blocks (in CBC encryption, over the blocks
that have the same place in their sectors), and numpy does what remains. Buffers are arrays of
64-bit words with the shape ``(sectors, blocks of a sector, words of a block)``; the words are just
eight bytes each, whatever the host's byte order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from imgtool.crypto.blockcipher import BlockCipher
from imgtool.crypto.ivgen import Generator
from imgtool.crypto.workspace import words

if TYPE_CHECKING:
    from imgtool.crypto.workspace import Words


class Mode(Protocol):
    """Encrypts and decrypts whole sectors, of which the first has the number ``first``.

    ``output`` has the shape of ``data``, and may be the same array.
    """

    def encrypt(self, first: int, data: Words, output: Words) -> None: ...

    def decrypt(self, first: int, data: Words, output: Words) -> None: ...


class Ecb:
    """Electronic codebook: each block on its own."""

    def __init__(self, cipher: BlockCipher) -> None:
        self._cipher = cipher

    def encrypt(self, first: int, data: Words, output: Words) -> None:
        output[...] = self._cipher.encrypt(data)

    def decrypt(self, first: int, data: Words, output: Words) -> None:
        output[...] = self._cipher.decrypt(data)


class Cbc:
    """Cipher block chaining (NIST SP 800-38A, 6.2), begun anew with each sector."""

    def __init__(self, cipher: BlockCipher, vectors: Generator) -> None:
        self._cipher = cipher
        self._vectors = vectors

    def encrypt(self, first: int, data: Words, output: Words) -> None:
        before = self._vectors(first, len(data))
        for block in range(data.shape[1]):
            before = self._cipher.encrypt(data[:, block] ^ before)
            output[:, block] = before

    def decrypt(self, first: int, data: Words, output: Words) -> None:
        vectors = self._vectors(first, len(data))
        blocks = self._cipher.decrypt(data)
        blocks[:, 1:] ^= data[:, :-1]
        blocks[:, 0] ^= vectors
        output[...] = blocks


class Ctr:
    """Counter mode (NIST SP 800-38A, 6.5): the vector counts up, as one big-endian number."""

    def __init__(self, cipher: BlockCipher, vectors: Generator) -> None:
        self._cipher = cipher
        self._vectors = vectors

    def encrypt(self, first: int, data: Words, output: Words) -> None:
        import numpy as np

        start = self._vectors(first, len(data)).view(">u8")
        counters = words("counters", data.shape).view(">u8")
        low = start[:, None, -1] + np.arange(data.shape[1], dtype=np.uint64)
        counters[:, :, -1] = low
        if data.shape[2] == 2:
            counters[:, :, 0] = start[:, None, 0] + (low < start[:, None, -1])
        np.bitwise_xor(self._cipher.encrypt(counters.view(np.uint64)), data, out=output)

    def decrypt(self, first: int, data: Words, output: Words) -> None:
        self.encrypt(first, data, output)


class Xts:
    """XTS (IEEE 1619-2018, 5.3) with data units of one sector: no ciphertext is ever stolen."""

    def __init__(self, cipher: BlockCipher, tweaking: BlockCipher, vectors: Generator) -> None:
        self._cipher = cipher
        self._tweaking = tweaking
        self._vectors = vectors

    def encrypt(self, first: int, data: Words, output: Words) -> None:
        self._run(self._cipher.encrypt, first, data, output)

    def decrypt(self, first: int, data: Words, output: Words) -> None:
        self._run(self._cipher.decrypt, first, data, output)

    def _run(self, step: Callable[[Words], Words], first: int, data: Words, output: Words) -> None:
        import numpy as np

        start = self._tweaking.encrypt(self._vectors(first, len(data)))
        masks = tweaks(start, data.shape[1])
        whitened = np.bitwise_xor(data, masks, out=words("whitened", data.shape))
        np.bitwise_xor(step(whitened), masks, out=output)


def tweaks(start: Words, count: int) -> Words:
    """Multiply each row of ``start`` by x to the powers 0 to ``count`` - 1 (IEEE 1619, 5.2).

    Rows are elements of GF(2^128), low word first; ``count`` is a power of two, 64 at most. Each
    step makes as many powers as there are already, by a multiplication with x to their number.
    The result is the workspace's: it is this thread's until the next call.
    """
    import numpy as np

    u64 = np.uint64
    # Low and high words are kept apart, powers outermost, so that every step works on whole rows.
    shape = (count, len(start))
    low, high, carry = words("low", shape), words("high", shape), words("carry", shape)
    low[0], high[0] = start.view("<u8").T
    have = 1
    while have < count:
        new_low, new_high = low[have : 2 * have], high[have : 2 * have]
        over = carry[:have]
        np.right_shift(low[:have], u64(64 - have), out=over)
        np.left_shift(high[:have], u64(have), out=new_high)
        np.bitwise_or(new_high, over, out=new_high)
        # What leaves the high word comes back times x^7 + x^2 + x + 1.
        np.right_shift(high[:have], u64(64 - have), out=over)
        np.left_shift(low[:have], u64(have), out=new_low)
        for shift in (0, 1, 1, 5):
            np.left_shift(over, u64(shift), out=over)
            np.bitwise_xor(new_low, over, out=new_low)
        have *= 2
    masks = words("masks", (len(start), count, 2))
    masks.view("<u8")[:, :, 0], masks.view("<u8")[:, :, 1] = low.T, high.T
    return masks
