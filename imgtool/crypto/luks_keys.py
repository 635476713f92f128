"""The keys of LUKS volumes: unlocking one with a password, and making a new volume.

Source: the LUKS1 On-Disk Format Specification, version 1.2.3, section 4.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from imgtool.crypto import antiforensic
from imgtool.crypto.kdf import derive, iterations_for
from imgtool.crypto.luks_header import (
    DIGEST_LENGTH,
    MAX_ITERATIONS,
    STRIPES,
    KeySlot,
    Volume,
    material_length,
    slot_offsets,
)
from imgtool.crypto.luks_options import VolumeOptions
from imgtool.crypto.sectors import CipherSpec, SectorCipher
from imgtool.errors import BadOption, ImageError

#: The share of the time for one password that the digest of the key takes.
_DIGEST_SHARE = 8


def unlock(volume: Volume, read: Callable[[int, int], bytes], password: bytes) -> SectorCipher:
    """Return the cipher of the volume's payload (section 4.3).

    ``read(offset, length)`` gives key material; offsets are bytes from the header on. Raises
    :class:`ImageError` if the password opens no slot.
    """
    length = volume.spec.key_length
    for slot in volume.slots:
        if not slot.active:
            continue
        derived = derive(password, slot.salt, slot.iterations, length, volume.hash)
        material = bytearray(read(slot.offset, volume.material_length))
        volume.spec.with_key(derived).decrypt(0, material, memoryview(material))
        key = antiforensic.merge(bytes(material[: length * STRIPES]), STRIPES, volume.hash)
        digest = derive(
            key, volume.digest_salt, volume.digest_iterations, DIGEST_LENGTH, volume.hash
        )
        if hmac.compare_digest(digest, volume.digest):
            return volume.spec.with_key(key)
    raise ImageError("Invalid password, cannot unlock any keyslot")


def new_volume(options: VolumeOptions, password: bytes) -> tuple[Volume, bytes, SectorCipher]:
    """Make a volume that ``password`` opens (section 4.1).

    Returns its header, the key material of its first slot, and the cipher of its payload.
    """
    import uuid

    spec, digest_name = options.spec, options.hash
    length = spec.key_length
    cipher = spec.with_key(key := os.urandom(length))
    seconds = options.iteration_time / 1000
    slot_salt, digest_salt = os.urandom(32), os.urandom(32)
    iterations = iterations_for(seconds, length, digest_name)
    digest_iterations = iterations_for(seconds / _DIGEST_SHARE, DIGEST_LENGTH, digest_name)
    if iterations + digest_iterations > MAX_ITERATIONS:
        raise BadOption(
            f"That iter-time means {iterations} iterations: {MAX_ITERATIONS} at most are allowed"
        )
    *offsets, payload_offset = slot_offsets(spec)
    first = KeySlot(offsets[0], active=True, iterations=iterations, salt=slot_salt)
    volume = Volume(
        spec=spec,
        hash=digest_name,
        payload_offset=payload_offset,
        digest=derive(key, digest_salt, digest_iterations, DIGEST_LENGTH, digest_name),
        digest_salt=digest_salt,
        digest_iterations=digest_iterations,
        uuid=str(uuid.uuid4()),
        slots=(first, *(KeySlot(offset) for offset in offsets[1:])),
    )
    derived = derive(password, slot_salt, iterations, length, digest_name)
    return volume, _locked(spec, key, derived, digest_name), cipher


def _locked(spec: CipherSpec, key: bytes, derived: bytes, hash: str) -> bytes:
    """The key, split and encrypted with what a password gave."""
    material = bytearray(antiforensic.split(key, STRIPES, hash).ljust(material_length(spec), b"\0"))
    spec.with_key(derived).encrypt(0, material, memoryview(material))
    return bytes(material)
