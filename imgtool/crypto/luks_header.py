"""A LUKS 1 header that has been judged: what may be believed before a key is derived on its word.

Source: the LUKS1 On-Disk Format Specification, version 1.2.3, section 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from imgtool.crypto.sectors import CipherSpec
from imgtool.errors import CorruptImage, UnsupportedFeature
from imgtool.schema import luks
from imgtool.schema.fields import build
from imgtool.units import align_up

#: How often a key is split, always.
STRIPES = 4000

#: What the active key slots may ask for, together with the digest of the key: a minute or two of
#: one processor's time. QEMU and cryptsetup choose what takes two seconds, and have no limit.
MAX_ITERATIONS = 100_000_000

#: Key material begins at multiples of this many bytes, the first behind the header.
_ALIGNMENT = 4096

#: The bytes of the digest that recognises the right key.
DIGEST_LENGTH = 20


@dataclass(frozen=True)
class KeySlot:
    """Where the key lies, encrypted with a password; ``offset`` is in bytes."""

    offset: int
    active: bool = False
    iterations: int = 0
    salt: bytes = bytes(32)
    stripes: int = STRIPES


@dataclass(frozen=True)
class Volume:
    """A LUKS volume; ``payload_offset`` and the slots' offsets count bytes from the header on."""

    spec: CipherSpec
    hash: str
    payload_offset: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    @property
    def material_length(self) -> int:
        """The bytes of the key material of one slot, whole sectors."""
        return material_length(self.spec)

    @classmethod
    def parse(cls, header: bytes) -> Volume:
        """Parse and judge the bytes of a header.

        Raises :class:`CorruptImage` for what contradicts itself, :class:`UnsupportedFeature` for
        ciphers and hashes that are not known here.
        """
        fields = luks.read(header)
        spec = _spec(luks.text(fields.cipher_name), luks.text(fields.cipher_mode), fields.key_bytes)
        slots = tuple(
            KeySlot(
                offset=slot.key_material_offset * luks.SECTOR,
                active=slot.active == luks.ACTIVE,
                iterations=slot.iterations,
                salt=slot.salt,
                stripes=slot.stripes,
            )
            for slot in fields.key_slots
        )
        volume = cls(
            spec=spec,
            hash=known_hash(luks.text(fields.hash_spec)),
            payload_offset=fields.payload_offset * luks.SECTOR,
            digest=fields.mk_digest,
            digest_salt=fields.mk_digest_salt,
            digest_iterations=fields.mk_digest_iterations,
            uuid=luks.text(fields.uuid),
            slots=slots,
        )
        volume._judge()
        return volume

    def _judge(self) -> None:
        if not self.payload_offset:
            raise UnsupportedFeature(["a LUKS header apart from its payload"])
        if self.payload_offset < luks.HEADER.sizeof():
            raise CorruptImage("The LUKS payload begins inside the header", self.payload_offset)
        iterations = self.digest_iterations
        counts = [iterations]
        for number, slot in enumerate(self.slots):
            if not slot.active:
                continue
            if slot.stripes != STRIPES:
                raise CorruptImage(f"LUKS key slot {number} has {slot.stripes} stripes")
            if (
                not luks.HEADER.sizeof()
                <= slot.offset
                <= self.payload_offset - (self.spec.key_length * STRIPES)
            ):
                raise CorruptImage(f"LUKS key slot {number} lies outside its place", slot.offset)
            counts.append(slot.iterations)
            iterations += slot.iterations
        if not all(counts):
            raise CorruptImage("A LUKS key is derived with no iterations")
        if iterations > MAX_ITERATIONS:
            raise CorruptImage(
                f"The LUKS header asks for {iterations} iterations: more than {MAX_ITERATIONS} "
                "are refused"
            )

    def build(self) -> bytes:
        """Return the header's bytes."""
        spec = self.spec
        mode = f"{spec.mode}-{spec.ivgen}"
        if spec.ivgen_hash is not None:
            mode += f":{spec.ivgen_hash}"
        slots = [
            {
                "active": luks.ACTIVE if slot.active else luks.INACTIVE,
                "iterations": slot.iterations,
                "salt": slot.salt,
                "key_material_offset": slot.offset // luks.SECTOR,
                "stripes": slot.stripes,
            }
            for slot in self.slots
        ]
        return build(
            luks.HEADER,
            {
                "version": 1,
                "cipher_name": spec.cipher.encode().ljust(32, b"\0"),
                "cipher_mode": mode.encode().ljust(32, b"\0"),
                "hash_spec": self.hash.encode().ljust(32, b"\0"),
                "payload_offset": self.payload_offset // luks.SECTOR,
                "key_bytes": spec.key_length,
                "mk_digest": self.digest,
                "mk_digest_salt": self.digest_salt,
                "mk_digest_iterations": self.digest_iterations,
                "uuid": self.uuid.encode().ljust(40, b"\0"),
                "key_slots": slots,
            },
        )


def material_length(spec: CipherSpec) -> int:
    """The bytes of a split key, in whole sectors."""
    return align_up(spec.key_length * STRIPES, luks.SECTOR)


def slot_offsets(spec: CipherSpec) -> list[int]:
    """Where QEMU puts the key material of the eight slots, and last the payload; bytes."""
    step = align_up(material_length(spec), _ALIGNMENT)
    return [_ALIGNMENT + number * step for number in range(luks.KEY_SLOTS + 1)]


def known_hash(name: str) -> str:
    """Return ``name``; raises :class:`UnsupportedFeature` if Python cannot compute that hash."""
    try:
        hashlib.pbkdf2_hmac(name, b"", b"", 1)
    except (ValueError, TypeError):
        raise UnsupportedFeature([f"the hash {name}"]) from None
    return name


def _spec(cipher: str, mode: str, key_bytes: int) -> CipherSpec:
    """Understand names such as ``aes`` and ``xts-plain64``, or ``cbc-essiv:sha256``."""
    mode, _, ivgen = mode.partition("-")
    ivgen, _, ivgen_hash = ivgen.partition(":")
    if mode == "xts":
        if key_bytes % 2:
            raise CorruptImage(f"A LUKS key of {key_bytes} bytes cannot be halved for XTS")
        key_bytes //= 2
    return CipherSpec(cipher, key_bytes, mode, ivgen or "plain", ivgen_hash or None)
