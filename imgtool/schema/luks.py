"""The header of a LUKS 1 volume, which formats with encryption hold.

Source: the LUKS1 On-Disk Format Specification, version 1.2.3. All integers are big-endian.
"""

from __future__ import annotations

from typing import Any

from construct import Bytes, Const, Int16ub, Int32ub, Struct

from imgtool.errors import CorruptImage
from imgtool.schema.fields import parse

SECTOR = 512
KEY_SLOTS = 8
ACTIVE = 0x00AC71F3
INACTIVE = 0x0000DEAD

_KEY_SLOT = Struct(
    "active" / Int32ub,
    "iterations" / Int32ub,
    "salt" / Bytes(32),
    "key_material_offset" / Int32ub,
    "stripes" / Int32ub,
)

# Section 2.1, phdr: offsets count sectors.
HEADER = Struct(
    "magic" / Const(b"LUKS\xba\xbe"),
    "version" / Int16ub,
    "cipher_name" / Bytes(32),
    "cipher_mode" / Bytes(32),
    "hash_spec" / Bytes(32),
    "payload_offset" / Int32ub,
    "key_bytes" / Int32ub,
    "mk_digest" / Bytes(20),
    "mk_digest_salt" / Bytes(32),
    "mk_digest_iterations" / Int32ub,
    "uuid" / Bytes(40),
    "key_slots" / _KEY_SLOT[KEY_SLOTS],
)


def read(header: bytes) -> Any:
    """Return the fields of a header; raises :class:`CorruptImage` for what is no LUKS 1 header."""
    fields = parse(HEADER, header, "The LUKS header")
    if fields.version != 1:
        raise CorruptImage(f"The LUKS header has the unknown version {fields.version}")
    return fields


def describe(header: bytes, *, inside: str | None = None) -> dict[str, Any]:
    """Return the facts of a LUKS header, named and ordered as qemu-img has them.

    ``inside`` is the value of ``format`` where another format holds the volume. Raises
    :class:`CorruptImage` for bytes that are no LUKS 1 header.
    """
    fields = read(header)
    # "xts-plain64", or "cbc-essiv:sha256": mode, generator of initial vectors, its hash.
    mode, _, generator = text(fields.cipher_mode).partition("-")
    generator, _, generator_hash = generator.partition(":")
    # XTS has two keys.
    bits = fields.key_bytes * 8 // (2 if mode == "xts" else 1)
    facts: dict[str, Any] = {
        "ivgen-alg": generator,
        "detached-header": False,
        "hash-alg": text(fields.hash_spec),
        "cipher-alg": f"{text(fields.cipher_name)}-{bits}",
        "uuid": text(fields.uuid),
    }
    if generator_hash:
        facts["ivgen-hash-alg"] = generator_hash
    if inside is not None:
        facts["format"] = inside
    facts["cipher-mode"] = mode
    facts["slots"] = [_slot(slot) for slot in fields.key_slots]
    facts["payload-offset"] = fields.payload_offset * SECTOR
    facts["master-key-iters"] = fields.mk_digest_iterations
    return facts


def _slot(slot: Any) -> dict[str, Any]:
    offset = slot.key_material_offset * SECTOR
    if slot.active != ACTIVE:
        return {"active": False, "key-offset": offset}
    return {
        "active": True,
        "iters": slot.iterations,
        "key-offset": offset,
        "stripes": slot.stripes,
    }


def text(field: bytes) -> str:
    """Return a text field up to the first NUL."""
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
