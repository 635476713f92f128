"""Encrypted data clusters: with LUKS inside the image, and with the old AES, which is only read.

Source: the specification's sections "Header" (encryption method), "Full disk encryption header
pointer" and "Data encryption". Sectors of LUKS images are numbered by where they lie in the host
file, those of AES images by where the guest sees them. Metadata is never encrypted.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgtool.device import BlockDevice
from imgtool.errors import BadOption, CorruptImage
from imgtool.extent import Extent
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import CRYPTO_POINTER, Crypt, ExtensionType
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.schema import luks
from imgtool.schema.fields import build
from imgtool.storage.base import Storage
from imgtool.storage.encrypted import EncryptedStorage

if TYPE_CHECKING:
    from imgtool.crypto.luks_options import VolumeOptions
    from imgtool.crypto.sectors import SectorCipher

_NAMES = {Crypt.AES: "aes", Crypt.LUKS: "luks"}
_AES_KEY_BYTES = 16


def check_format(header: Header, options: Mapping[str, Any]) -> None:
    """Raise :class:`BadOption` if the image is not encrypted as ``encrypt.format`` says."""
    expected = options.get("encrypt.format")
    found = _NAMES.get(header.crypt_method)
    if expected is None or expected == found:
        return
    if found is None:
        raise BadOption(f"No encryption in image header, but options specified format '{expected}'")
    raise BadOption(f"Header reported '{found}' encryption format but options specify '{expected}'")


def unlock(storage: Storage, header: Header, options: Mapping[str, Any]) -> SectorCipher:
    """Return the cipher of an encrypted image's data.

    Raises :class:`BadOption` without a secret, and :class:`ImageError` for one that is wrong. (The
    old AES has nothing by which a wrong one could be told.)
    """
    from imgtool.crypto.luks_options import password_of

    password = password_of(options, "encrypt.")
    if header.crypt_method is Crypt.AES:
        from imgtool.crypto.sectors import CipherSpec

        key = password[:_AES_KEY_BYTES].ljust(_AES_KEY_BYTES, b"\0")
        return CipherSpec("aes", _AES_KEY_BYTES, "cbc", "plain64").with_key(key)

    from imgtool.crypto.luks_header import Volume
    from imgtool.crypto.luks_keys import unlock

    start, length = luks_place(header)
    volume = Volume.parse(read_luks_header(storage, header))

    def read(offset: int, count: int) -> bytes:
        if offset + count > length:
            raise CorruptImage("LUKS key material lies outside the LUKS header", start + offset)
        return bytes(storage.read_exact(start + offset, count, "LUKS key material"))

    return unlock(volume, read, password)


def luks_place(header: Header) -> tuple[int, int]:
    """The offset and the length of the LUKS header with its key material."""
    pointer = header.luks_header
    if pointer is None:
        raise CorruptImage("The image is encrypted with LUKS and has no LUKS header")
    offset, length = pointer
    if length < luks.HEADER.sizeof():
        raise CorruptImage(f"The LUKS header of {length} bytes is too short", offset)
    return offset, length


def read_luks_header(storage: Storage, header: Header) -> bytes:
    """The bytes of the LUKS header, without its key material."""
    offset, _ = luks_place(header)
    return bytes(storage.read_exact(offset, luks.HEADER.sizeof(), "The LUKS header"))


def new_volume(
    storage: Storage, header: Header, offset: int, options: VolumeOptions, password: bytes
) -> tuple[Header, SectorCipher]:
    """Write a new LUKS header at host ``offset``, whose clusters have been taken for it.

    Returns the image's header with a pointer to it, and the cipher for its data.
    """
    from imgtool.crypto import luks_keys

    volume, material, cipher = luks_keys.new_volume(options, password)
    storage.write_at(offset, volume.build())
    storage.write_at(offset + volume.slots[0].offset, material)
    # The region ends with the key material of the last slot, which holds none.
    storage.truncate(max(storage.size(), offset + volume.payload_offset))
    pointer = build(CRYPTO_POINTER, {"offset": offset, "length": volume.payload_offset})
    return header.with_extension(ExtensionType.CRYPTO, pointer), cipher


def decrypted(
    storage: Storage,
    header: Header,
    l1: array[int],
    cipher: SectorCipher,
    *,
    data: Storage,
    backing: BlockDevice | None,
    snapshot: Snapshot | None,
) -> Qcow2Device:
    """Return the disk of an encrypted image, or that of a snapshot, open for reading."""
    if header.crypt_method is Crypt.AES:
        return AesDevice(storage, header, l1, cipher, data=data, backing=backing, snapshot=snapshot)
    contents = EncryptedStorage(data, cipher)
    return Qcow2Device(
        storage, header, l1, data=data, contents=contents, backing=backing, snapshot=snapshot
    )


class AesDevice(Qcow2Device):
    """A disk with the old AES encryption, open for reading."""

    def __init__(
        self,
        storage: Storage,
        header: Header,
        l1: array[int],
        cipher: SectorCipher,
        *,
        data: Storage,
        backing: BlockDevice | None,
        snapshot: Snapshot | None,
    ) -> None:
        super().__init__(
            storage, header, l1, data=data, contents=data, backing=backing, snapshot=snapshot
        )
        self._cipher = cipher

    def _read_data(self, extent: Extent, view: memoryview) -> None:
        assert extent.storage is not None
        assert extent.host_offset is not None
        start = extent.host_offset - extent.offset
        EncryptedStorage(extent.storage, self._cipher, start).read_into(extent.offset, view)
