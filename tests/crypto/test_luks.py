"""LUKS volumes: made, unlocked, and damaged in every field of the header."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.crypto import luks_header
from imgtool.crypto.luks_header import MAX_ITERATIONS, Volume, slot_offsets
from imgtool.crypto.luks_keys import new_volume, unlock
from imgtool.crypto.luks_options import VolumeOptions
from imgtool.crypto.sectors import CipherSpec, SectorCipher
from imgtool.errors import BadOption, CorruptImage, ImageError, UnsupportedFeature
from imgtool.schema import luks
from imgtool.schema.fields import build, parse

_QUICK = {"iter_time": 1}


def _made(**options: Any) -> tuple[bytes, bytes, SectorCipher]:
    """The file of a volume without payload, and its cipher; its password is ``open``."""
    chosen = VolumeOptions.from_mapping({**_QUICK, **options})
    volume, material, cipher = new_volume(chosen, b"open")
    file = bytearray(volume.payload_offset)
    file[:592] = volume.build()
    file[volume.slots[0].offset :][: len(material)] = material
    start = volume.slots[0].offset
    file[start : start + len(material)] = material
    return bytes(file), volume.build(), cipher


@pytest.fixture(scope="module")
def made() -> tuple[bytes, bytes, SectorCipher]:
    return _made()


def _unlock(file: bytes, header: bytes, password: bytes = b"open") -> SectorCipher:
    return unlock(
        Volume.parse(header), lambda offset, count: file[offset : offset + count], password
    )


def _same(one: SectorCipher, other: SectorCipher) -> bool:
    outputs = []
    for cipher in (one, other):
        output = bytearray(1024)
        cipher.encrypt(5, bytes(range(256)) * 4, memoryview(output))
        outputs.append(output)
    return outputs[0] == outputs[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cipher_alg": "aes-128"},
        {"cipher_alg": "aes-192"},
        {"cipher_mode": "cbc", "ivgen_alg": "essiv"},
        {"cipher_mode": "ctr", "ivgen_alg": "plain", "hash_alg": "sha512"},
        {"cipher_mode": "ecb", "hash_alg": "sha1"},
        {"cipher_alg": "cast5-128", "cipher_mode": "cbc"},
        {"ivgen_hash_alg": "sha1"},
    ],
)
def test_made_and_unlocked(options: dict[str, str]) -> None:
    file, header, cipher = _made(**options)
    volume = Volume.parse(header)
    assert volume.build() == header
    assert volume.payload_offset == len(file) == slot_offsets(volume.spec)[-1]
    assert _same(_unlock(file, header), cipher)
    facts = luks.describe(header)
    assert facts["cipher-alg"] == options.get("cipher_alg", "aes-256")
    assert facts["cipher-mode"] == options.get("cipher_mode", "xts")
    assert facts["hash-alg"] == options.get("hash_alg", "sha256")


@pytest.mark.parametrize("password", [b"", b"Open", b"open\n", b"x" * 10_000])
def test_wrong_passwords(made: tuple[bytes, bytes, SectorCipher], password: bytes) -> None:
    with pytest.raises(ImageError, match=r"^Invalid password, cannot unlock any keyslot$"):
        _unlock(made[0], made[1], password)


def test_no_key_is_made_twice() -> None:
    one, other = _made(), _made()
    assert not _same(one[2], other[2])
    assert luks.read(one[1]).uuid != luks.read(other[1]).uuid


def test_another_slot(made: tuple[bytes, bytes, SectorCipher]) -> None:
    """The first slot need not be the one that opens."""
    file, header, cipher = made
    fields = luks.read(header)
    first, fifth = fields.key_slots[0], fields.key_slots[5]
    place = first.key_material_offset * 512
    moved = bytearray(file)
    moved[fifth.key_material_offset * 512 :][: 256 * 1024] = b""
    moved[fifth.key_material_offset * 512 :] = file[place : place + 256_000]
    for name in ("active", "iterations", "salt"):
        fifth[name] = first[name]
    first.salt = bytes(32)
    assert _same(_unlock(bytes(moved), build(luks.HEADER, fields)), cipher)
    first.active = luks.INACTIVE
    assert _same(_unlock(bytes(moved), build(luks.HEADER, fields)), cipher)
    fifth.active = luks.INACTIVE
    with pytest.raises(ImageError, match="Invalid password"):
        _unlock(bytes(moved), build(luks.HEADER, fields))


# Damage


def _patched(header: bytes, change: Callable[[Any], None]) -> bytes:
    fields = parse(luks.HEADER, header, "The header")
    change(fields)
    return build(luks.HEADER, fields)


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda fields: fields.update({name: value})


def _set_slot(name: str, value: Any, number: int = 0) -> Callable[[Any], None]:
    return lambda fields: fields.key_slots[number].update({name: value})


def _text(value: bytes) -> bytes:
    return value.ljust(32, b"\0")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_set("version", 2), CorruptImage),
        (_set("version", 0), CorruptImage),
        (_set("cipher_name", _text(b"rot13")), UnsupportedFeature),
        (_set("cipher_name", b"\xff" * 32), UnsupportedFeature),
        (_set("cipher_name", _text(b"")), UnsupportedFeature),
        (_set("cipher_mode", _text(b"xts-essiv")), UnsupportedFeature),
        (_set("cipher_mode", _text(b"xts-essiv:nonsense")), UnsupportedFeature),
        (_set("cipher_mode", _text(b"-plain64")), UnsupportedFeature),
        (_set("cipher_mode", b"x" * 32), UnsupportedFeature),
        (_set("hash_spec", _text(b"nonsense")), UnsupportedFeature),
        (_set("hash_spec", _text(b"")), UnsupportedFeature),
        (_set("hash_spec", _text(b"shake_128")), UnsupportedFeature),
        (_set("key_bytes", 0), UnsupportedFeature),
        (_set("key_bytes", 63), CorruptImage),
        (_set("key_bytes", 0xFFFFFFFF), CorruptImage),
        (_set("key_bytes", 0xFFFFFFFE), UnsupportedFeature),
        (_set("payload_offset", 0), UnsupportedFeature),
        (_set("payload_offset", 1), CorruptImage),
        (_set("payload_offset", 100), CorruptImage),
        (_set("mk_digest", bytes(20)), ImageError),
        (_set("mk_digest_iterations", 0), CorruptImage),
        (_set("mk_digest_iterations", 0xFFFFFFFF), CorruptImage),
        (_set_slot("iterations", 0), CorruptImage),
        (_set_slot("iterations", 0xFFFFFFFF), CorruptImage),
        (_set_slot("stripes", 0), CorruptImage),
        (_set_slot("stripes", 0xFFFFFFFF), CorruptImage),
        (_set_slot("key_material_offset", 0), CorruptImage),
        (_set_slot("key_material_offset", 1), CorruptImage),
        (_set_slot("key_material_offset", 0xFFFFFFFF), CorruptImage),
        (_set_slot("key_material_offset", 3541), CorruptImage),
        (_set_slot("key_material_offset", 16), ImageError),
        (_set_slot("active", 1), ImageError),
        (_set_slot("salt", bytes(32)), ImageError),
    ],
)
def test_damaged_headers(
    made: tuple[bytes, bytes, SectorCipher],
    change: Callable[[Any], None],
    kind: type[ImageError],
) -> None:
    file, header, _ = made
    with pytest.raises(kind):
        _unlock(file, _patched(header, change))


@pytest.mark.parametrize("length", [0, 7, 591])
def test_headers_cut_short(made: tuple[bytes, bytes, SectorCipher], length: int) -> None:
    with pytest.raises(CorruptImage):
        Volume.parse(made[1][:length])


def test_the_bound_on_iterations(made: tuple[bytes, bytes, SectorCipher]) -> None:
    """All active slots count, and the digest; those that are not active do not."""
    digest = Volume.parse(made[1]).digest_iterations
    left = MAX_ITERATIONS - digest
    Volume.parse(_patched(made[1], _set_slot("iterations", left)))
    with pytest.raises(CorruptImage, match="iterations"):
        Volume.parse(_patched(made[1], _set_slot("iterations", left + 1)))
    Volume.parse(_patched(made[1], _set_slot("iterations", 0xFFFFFFFF, number=3)))

    def two(fields: Any) -> None:
        for number in (0, 1):
            fields.key_slots[number].active = luks.ACTIVE
            fields.key_slots[number].iterations = left // 2 + 1

    with pytest.raises(CorruptImage, match="iterations"):
        Volume.parse(_patched(made[1], two))


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 591), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_damage(
    made: tuple[bytes, bytes, SectorCipher], places: list[tuple[int, int]]
) -> None:
    file, header, _ = made
    damaged = bytearray(header)
    for place, value in places:
        damaged[place] = value
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImageError):
        patch.setattr(luks_header, "MAX_ITERATIONS", 100_000)
        _unlock(file, bytes(damaged))


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cipher_alg": "rot13"}, "'cipher-alg' does not accept value 'rot13'"),
        ({"cipher_mode": "cfb"}, "'cipher-mode' does not accept value 'cfb'"),
        ({"ivgen_alg": "benbi"}, "'ivgen-alg' does not accept value 'benbi'"),
        ({"hash_alg": "crc32"}, "'hash-alg' does not accept value 'crc32'"),
        ({"ivgen_hash_alg": "crc32"}, "'ivgen-hash-alg' does not accept value 'crc32'"),
        ({"cipher_alg": "3des"}, "3des"),
        ({"cipher_alg": "serpent-256"}, "serpent-256.*cryptography"),
        ({"cipher_alg": "cast5-128"}, "xts"),
        ({"cipher_mode": "cbc", "ivgen_alg": "essiv", "ivgen_hash_alg": "sha512"}, "64 bytes"),
        ({"cipher_alg": "aes-192", "cipher_mode": "cbc"}, "QEMU cannot open"),
        ({"iter_time": -1}, "iter-time"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        VolumeOptions.from_mapping(options)


def test_time_that_nobody_has() -> None:
    options = VolumeOptions.from_mapping({"iter_time": 10_000_000})
    with pytest.raises(BadOption, match="iterations"):
        new_volume(options, b"")


def test_time_makes_iterations() -> None:
    quick = new_volume(VolumeOptions.from_mapping({"iter_time": 0}), b"")[0]
    assert quick.slots[0].iterations == quick.digest_iterations == 1000
    slow = new_volume(VolumeOptions.from_mapping({"iter_time": 100}), b"")[0]
    assert slow.slots[0].iterations > 4000


def test_key_material_that_ends_inside_a_sector() -> None:
    """cryptsetup makes such volumes, and fills their last sector up."""
    spec = CipherSpec("aes", 24, "cbc", "plain64")
    volume, material, cipher = new_volume(VolumeOptions(spec, "sha256", 1), b"open")
    assert volume.material_length == len(material) == 188 * 512
    start = volume.slots[0].offset

    def read(offset: int, count: int) -> bytes:
        return material[offset - start : offset - start + count]

    assert _same(unlock(volume, read, b"open"), cipher)


# Without the package


def test_without_cryptography(
    made: tuple[bytes, bytes, SectorCipher], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ImageError, match=r"pip install 'imgtool\[crypto\]'"):
        _unlock(made[0], made[1])
    with pytest.raises(ImageError, match=r"pip install 'imgtool\[crypto\]'"):
        VolumeOptions.from_mapping({})
    # What a header says can be told all the same.
    assert luks.describe(made[1])["cipher-alg"] == "aes-256"
