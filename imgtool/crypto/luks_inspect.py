"""Inspecting a LUKS 1 header, wherever a format has it."""

from __future__ import annotations

from imgtool.crypto.luks_header import Volume
from imgtool.errors import ImageError
from imgtool.inspection import Notes
from imgtool.schema import luks


def inspect_header(notes: Notes, data: bytes) -> Volume:
    """Judge the bytes of a header, say what it encrypts with, and return it parsed.

    Raises :class:`ImageError` for a header that no key may be derived from.
    """
    fields = luks.read(data)
    cipher, mode = luks.text(fields.cipher_name), luks.text(fields.cipher_mode)
    notes.encryption = f"luks {cipher}-{fields.key_bytes * 8} {mode} {luks.text(fields.hash_spec)}"
    try:
        volume = Volume.parse(data)
    except ImageError as error:
        raise error.within("The LUKS header") from error.__cause__
    if not any(slot.active for slot in volume.slots):
        notes.unsafe("luks-keys", "No key slot of the LUKS header is in use")
    return volume
