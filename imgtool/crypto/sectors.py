"""What a disk is encrypted with: the names of it, and the cipher over sectors that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgtool.crypto.blockcipher import BLOCK_SIZES, KEY_LENGTHS, BlockCipher
from imgtool.crypto.ivgen import GENERATORS, generator
from imgtool.crypto.modes import Cbc, Ctr, Ecb, Mode, Xts
from imgtool.errors import UnsupportedFeature

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from imgtool.crypto.workspace import Words

#: The unit of encryption in bytes: each sector has a number and an initial vector of its own.
SECTOR = 512

MODES = ("ecb", "cbc", "xts", "ctr")

#: Bytes that are encrypted at a time: what is held meanwhile stays in a processor's cache.
_PIECE = 512 << 10


@dataclass(frozen=True)
class CipherSpec:
    """A cipher with all that belongs to it, in QEMU's words.

    ``key_bytes`` is the length of the cipher's own key; XTS takes two of them.
    """

    cipher: str
    key_bytes: int
    mode: str = "xts"
    ivgen: str = "plain64"
    ivgen_hash: str | None = None

    def __post_init__(self) -> None:
        """Raise :class:`UnsupportedFeature` for names and combinations that there are not."""
        problem = None
        if self.cipher not in KEY_LENGTHS:
            problem = f"the cipher {self.cipher}"
        elif self.key_bytes not in KEY_LENGTHS[self.cipher]:
            problem = f"the cipher {self.cipher} with keys of {self.key_bytes} bytes"
        elif self.mode not in MODES:
            problem = f"the cipher mode {self.mode}"
        elif self.mode == "xts" and BLOCK_SIZES[self.cipher] != 16:
            problem = f"the cipher mode xts with {self.cipher}"
        elif self.ivgen not in GENERATORS:
            problem = f"the initial vectors {self.ivgen}"
        if problem is not None:
            raise UnsupportedFeature([problem])

    @property
    def key_length(self) -> int:
        """The bytes of a volume's key: one key of the cipher, or two."""
        return self.key_bytes * (2 if self.mode == "xts" else 1)

    def with_key(self, key: bytes) -> SectorCipher:
        """Return the cipher over sectors that ``key``, of ``key_length`` bytes, makes."""
        cipher = BlockCipher(self.cipher, key[: self.key_bytes])
        vectors = generator(self.ivgen, self.ivgen_hash, self.cipher, key, cipher.block_size)
        mode: Mode
        if self.mode == "xts":
            mode = Xts(cipher, BlockCipher(self.cipher, key[self.key_bytes :]), vectors)
        elif self.mode == "cbc":
            mode = Cbc(cipher, vectors)
        elif self.mode == "ctr":
            mode = Ctr(cipher, vectors)
        else:
            mode = Ecb(cipher)
        return SectorCipher(mode, cipher.block_size)


class SectorCipher:
    """Encrypts and decrypts whole sectors. Any number of threads may use it."""

    def __init__(self, mode: Mode, block_size: int) -> None:
        self._mode = mode
        self._shape = (-1, SECTOR // block_size, block_size // 8)

    def encrypt(self, first: int, source: ReadableBuffer, target: memoryview) -> None:
        """Encrypt ``source``, whole sectors from the sector number ``first`` on, into ``target``.

        The two are of one length, and may be one buffer.
        """
        self._run(self._mode.encrypt, first, memoryview(source), target)

    def decrypt(self, first: int, source: ReadableBuffer, target: memoryview) -> None:
        """The inverse of :meth:`encrypt`."""
        self._run(self._mode.decrypt, first, memoryview(source), target)

    def _run(
        self,
        step: Callable[[int, Words, Words], None],
        first: int,
        source: memoryview,
        target: memoryview,
    ) -> None:
        import numpy as np

        for start in range(0, len(source), _PIECE):
            end = start + _PIECE
            data = np.frombuffer(source[start:end], dtype=np.uint64).reshape(self._shape)
            output = np.frombuffer(target[start:end], dtype=np.uint64).reshape(self._shape)
            step(first + start // SECTOR, data, output)
