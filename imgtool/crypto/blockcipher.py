"""Block ciphers by name and key, applied to many blocks in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgtool.crypto.workspace import with_slack, words
from imgtool.errors import ImageError, UnsupportedFeature

if TYPE_CHECKING:
    from imgtool.crypto.workspace import Words

#: The lengths of keys, in bytes, by cipher: those that LUKS volumes of QEMU's can have.
KEY_LENGTHS = {
    "aes": (16, 24, 32),
    "cast5": (16,),
    "serpent": (16, 24, 32),
    "twofish": (16, 24, 32),
}

#: Bytes of one block, by cipher.
BLOCK_SIZES = {"aes": 16, "cast5": 8, "serpent": 16, "twofish": 16}

_HINT = (
    "Encrypted disks need the Python package 'cryptography', which cannot be imported: "
    "pip install 'imgtool[crypto]'"
)


class BlockCipher:
    """One key of one cipher. Any number of threads may use it.

    Raises :class:`UnsupportedFeature` for ciphers that ``cryptography`` lacks, and
    :class:`ImageError` where that is not installed.
    """

    def __init__(self, name: str, key: bytes) -> None:
        self.block_size = BLOCK_SIZES[name]
        self._cipher = _load(name, key)

    def encrypt(self, data: Words) -> Words:
        """Encrypt whole blocks, each on its own (ECB).

        The result is the workspace's: it is this thread's until the next call.
        """
        return self._run(self._cipher.encryptor(), data)

    def decrypt(self, data: Words) -> Words:
        """The inverse of :meth:`encrypt`."""
        return self._run(self._cipher.decryptor(), data)

    def _run(self, context: Any, data: Words) -> Words:
        import numpy as np

        output = words("blocks", data.shape)
        context.update_into(data.reshape(-1).view(np.uint8), with_slack("blocks", output))
        return output


def _load(name: str, key: bytes) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        algorithm = _algorithm(name)
    except ImportError as error:
        raise ImageError(_HINT) from error
    unsupported = UnsupportedFeature(
        [f"the cipher {name}-{len(key) * 8}, which the package 'cryptography' does not have"]
    )
    if algorithm is None:
        raise unsupported
    try:
        cipher = Cipher(algorithm(key), modes.ECB())
        cipher.encryptor()
    except UnsupportedAlgorithm as error:
        raise unsupported from error
    return cipher


def _algorithm(name: str) -> Any:
    from cryptography.hazmat.primitives.ciphers import algorithms

    if name == "aes":
        return algorithms.AES
    if name == "cast5":
        try:
            from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5
        except ImportError:
            return None
        return CAST5
    return None
