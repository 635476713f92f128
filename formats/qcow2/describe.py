"""What ``info`` tells about a qcow2 image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgtool.description import Description
from imgtool.formats.qcow2.schema import BitmapFlag, Compatible, Crypt

if TYPE_CHECKING:
    from imgtool.device import BlockDevice
    from imgtool.formats.qcow2.bitmaps import Bitmap
    from imgtool.formats.qcow2.driver import Qcow2Device


def describe(device: BlockDevice) -> Description:
    """Describe an open qcow2 image; raises :class:`CorruptImage` for broken tables."""
    from imgtool.formats.qcow2.driver import Qcow2Device

    assert isinstance(device, Qcow2Device)
    header = device.header
    return Description(
        cluster_size=header.geometry.cluster_size,
        encrypted=header.crypt_method is not Crypt.NONE,
        dirty=header.dirty,
        backing_filename=header.backing_file,
        backing_format=header.backing_format,
        snapshots=device.stored_snapshots,
        specific=_specific(device),
    )


def _specific(device: Qcow2Device) -> dict[str, Any]:
    header = device.header
    compression = header.compression.name.lower()
    if header.version < 3:
        facts: dict[str, Any] = {"compat": "0.10", "compression-type": compression}
    else:
        facts = {
            "compat": "1.1",
            "compression-type": compression,
            "lazy-refcounts": bool(header.compatible & Compatible.LAZY_REFCOUNTS),
        }
        if device.bitmaps:
            facts["bitmaps"] = [_bitmap(bitmap) for bitmap in device.bitmaps]
    facts["refcount-bits"] = header.geometry.refcount_bits
    if header.data_file is not None:
        facts["data-file"] = header.data_file
    if header.crypt_method is not Crypt.NONE:
        facts["encrypt"] = _encryption(device)
    if header.version >= 3:
        if header.has_data_file:
            facts["data-file-raw"] = header.data_file_raw
        facts["corrupt"] = header.corrupt
        facts["extended-l2"] = header.geometry.extended_l2
    return facts


def _bitmap(bitmap: Bitmap) -> dict[str, Any]:
    flags = [
        name
        for flag, name in ((BitmapFlag.IN_USE, "in-use"), (BitmapFlag.AUTO, "auto"))
        if bitmap.flags & flag
    ]
    return {"flags": flags, "name": bitmap.name, "granularity": bitmap.granularity}


def _encryption(device: Qcow2Device) -> dict[str, Any]:
    if device.header.crypt_method is Crypt.AES:
        return {"format": "aes"}
    from imgtool.formats.qcow2.encryption import read_luks_header
    from imgtool.schema import luks

    header = read_luks_header(device.storage, device.header)
    return luks.describe(header, inside="luks")
