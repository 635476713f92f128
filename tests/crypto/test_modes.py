"""The ciphers over sectors, against the standard's vectors and cryptography's own modes."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.crypto.sectors import SECTOR, CipherSpec, SectorCipher
from imgtool.errors import UnsupportedFeature

_NOISE = random.Random(7).randbytes(1 << 20)

#: IEEE 1619-2018, annex B, vector 4: one data unit of 512 bytes, its number 0.
_VECTOR_KEY = bytes.fromhex("2718281828459045235360287471352631415926535897932384626433832795")
_VECTOR_START = bytes.fromhex(
    "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
    "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412"
)


def _encrypted(cipher: SectorCipher, first: int, data: bytes) -> bytes:
    output = bytearray(len(data))
    cipher.encrypt(first, data, memoryview(output))
    return bytes(output)


def _decrypted(cipher: SectorCipher, first: int, data: bytes) -> bytes:
    output = bytearray(len(data))
    cipher.decrypt(first, data, memoryview(output))
    return bytes(output)


def _one_by_one(make: Callable[[int], Any], first: int, data: bytes) -> bytes:
    """Encrypt each sector with a context of its own, which ``make`` gives for its number."""
    pieces = []
    for start in range(0, len(data), SECTOR):
        encryptor = make(first + start // SECTOR).encryptor()
        pieces.append(encryptor.update(data[start : start + SECTOR]) + encryptor.finalize())
    return b"".join(pieces)


def test_the_standards_vector() -> None:
    plain = bytes(range(256)) * 2
    encrypted = _encrypted(CipherSpec("aes", 16).with_key(_VECTOR_KEY), 0, plain)
    assert encrypted[: len(_VECTOR_START)] == _VECTOR_START
    assert _decrypted(CipherSpec("aes", 16).with_key(_VECTOR_KEY), 0, encrypted) == plain


@settings(max_examples=30, deadline=None)
@given(
    key=st.binary(min_size=64, max_size=64),
    first=st.integers(0, (1 << 55) - 100),
    sectors=st.integers(1, 70),
    offset=st.integers(0, 1 << 19),
    half=st.booleans(),
)
def test_xts_against_cryptography(
    key: bytes, first: int, sectors: int, offset: int, half: bool
) -> None:
    key = key[:32] if half else key
    if key[: len(key) // 2] == key[len(key) // 2 :]:
        return  # cryptography refuses equal halves
    data = _NOISE[offset : offset + sectors * SECTOR]
    expected = _one_by_one(
        lambda number: Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))),
        first,
        data,
    )
    cipher = CipherSpec("aes", len(key) // 2).with_key(key)
    assert _encrypted(cipher, first, data) == expected
    assert _decrypted(cipher, first, expected) == data


@pytest.mark.parametrize("first", [0, 1, (1 << 32) - 3, (1 << 40) + 5])
@pytest.mark.parametrize("ivgen", ["plain", "plain64"])
@pytest.mark.parametrize(
    ("algorithm", "name", "block"), [(algorithms.AES, "aes", 16), (CAST5, "cast5", 8)]
)
@pytest.mark.parametrize("mode", ["cbc", "ctr"])
def test_other_modes_against_cryptography(
    mode: str, algorithm: Any, name: str, block: int, ivgen: str, first: int
) -> None:
    key = _NOISE[:16]
    data = _NOISE[100 : 100 + 9 * SECTOR]
    kinds: dict[str, Any] = {"cbc": modes.CBC, "ctr": modes.CTR}
    mask = 0xFFFF_FFFF if ivgen == "plain" else (1 << 64) - 1

    def vector(number: int) -> bytes:
        return (number & mask).to_bytes(8, "little").ljust(block, b"\0")

    cipher = CipherSpec(name, 16, mode, ivgen).with_key(key)
    found = _encrypted(cipher, first, data)
    if (mode, name) == ("ctr", "cast5"):
        # OpenSSL has no such mode: a counter is what the cipher makes of one block after another.
        expected = b"".join(
            _counted(key, vector(first + number), data[number * SECTOR : (number + 1) * SECTOR])
            for number in range(9)
        )
    else:
        expected = _one_by_one(
            lambda number: Cipher(algorithm(key), kinds[mode](vector(number))), first, data
        )
    assert found == expected
    assert _decrypted(cipher, first, found) == data


def _counted(key: bytes, vector: bytes, data: bytes) -> bytes:
    start = int.from_bytes(vector, "big")
    counters = b"".join(
        ((start + number) % (1 << 64)).to_bytes(8, "big") for number in range(len(data) // 8)
    )
    stream = Cipher(CAST5(key), modes.ECB()).encryptor().update(counters)
    return bytes(a ^ b for a, b in zip(stream, data, strict=True))


def test_a_counter_carries_into_its_high_half() -> None:
    """ESSIV's vectors can be anything, so a counter may overflow inside a sector."""
    import numpy as np

    from imgtool.crypto.blockcipher import BlockCipher
    from imgtool.crypto.modes import Ctr

    key, vector = _NOISE[:16], bytes(8) + b"\xff" * 7 + b"\xf0"
    rows = np.frombuffer(vector, dtype=np.uint64).reshape(1, 2)
    mode = Ctr(BlockCipher("aes", key), lambda first, count: rows)
    data = np.frombuffer(_NOISE[:SECTOR], dtype=np.uint64).reshape(1, 32, 2)
    output = np.empty_like(data)
    mode.encrypt(0, data, output)
    expected = Cipher(algorithms.AES(key), modes.CTR(vector)).encryptor().update(_NOISE[:SECTOR])
    assert output.tobytes() == expected


def test_essiv() -> None:
    import hashlib

    key, data, first = _NOISE[:16], _NOISE[: 5 * SECTOR], 12345
    salt = Cipher(algorithms.AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor()
    expected = _one_by_one(
        lambda number: Cipher(
            algorithms.AES(key), modes.CBC(salt.update(number.to_bytes(16, "little")))
        ),
        first,
        data,
    )
    cipher = CipherSpec("aes", 16, "cbc", "essiv", "sha256").with_key(key)
    assert _encrypted(cipher, first, data) == expected
    assert _decrypted(cipher, first, expected) == data


_SPECS = [
    CipherSpec("aes", 32),
    CipherSpec("aes", 24),
    CipherSpec("aes", 16, "xts", "essiv", "sha256"),
    CipherSpec("aes", 32, "cbc", "essiv", "sha256"),
    CipherSpec("aes", 16, "ctr", "essiv", "md5"),
    CipherSpec("aes", 32, "ecb"),
    CipherSpec("cast5", 16, "cbc"),
]


@pytest.mark.parametrize("spec", _SPECS, ids=lambda spec: f"{spec.cipher}-{spec.mode}")
def test_any_place_and_buffer(spec: CipherSpec) -> None:
    """Sectors do not depend on what is encrypted with them, and one buffer does for both."""
    cipher = spec.with_key(_NOISE[: spec.key_length])
    whole = _encrypted(cipher, 100, _NOISE)
    assert whole != _NOISE
    for start, count in ((0, 1), (1023, 3), (2000, 48)):
        part = _NOISE[start * SECTOR : (start + count) * SECTOR]
        assert _encrypted(cipher, 100 + start, part) == whole[start * SECTOR :][: len(part)]
    store = bytearray(b"?" + _NOISE + b"?")
    inside = memoryview(store)[1:-1]
    cipher.encrypt(100, inside, inside)
    assert store == b"?" + whole + b"?"
    cipher.decrypt(100, inside, inside)
    assert store == b"?" + _NOISE + b"?"


@pytest.mark.parametrize("spec", _SPECS, ids=lambda spec: f"{spec.cipher}-{spec.mode}")
def test_many_threads(spec: CipherSpec) -> None:
    cipher = spec.with_key(_NOISE[: spec.key_length])
    parts = [_NOISE[start : start + 64 * SECTOR] for start in range(0, 1 << 19, 64 * SECTOR)]
    expected = [_encrypted(cipher, number, part) for number, part in enumerate(parts)]

    def work(number: int) -> None:
        for _ in range(5):
            assert _encrypted(cipher, number, parts[number]) == expected[number]
            assert _decrypted(cipher, number, expected[number]) == parts[number]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(len(parts))))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("rot13", 16), "rot13"),
        (("aes", 8), "8 bytes"),
        (("aes", 16, "cfb"), "cfb"),
        (("cast5", 16, "xts"), "xts"),
        (("aes", 16, "cbc", "benbi"), "benbi"),
    ],
)
def test_specifications_that_there_are_not(arguments: Any, what: str) -> None:
    with pytest.raises(UnsupportedFeature, match=what):
        CipherSpec(*arguments)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (CipherSpec("serpent", 32), "serpent-256"),
        (CipherSpec("twofish", 16), "twofish-128"),
        (CipherSpec("aes", 32, "cbc", "essiv", "sha512"), "64 bytes"),
        (CipherSpec("aes", 32, "cbc", "essiv", "sha1"), "20 bytes"),
        (CipherSpec("aes", 32, "cbc", "essiv", "crc32"), "crc32"),
        (CipherSpec("aes", 32, "cbc", "essiv"), "the hash"),
    ],
)
def test_keys_that_cannot_be_used(spec: CipherSpec, what: str) -> None:
    with pytest.raises(UnsupportedFeature, match=what):
        spec.with_key(bytes(range(spec.key_length)))
