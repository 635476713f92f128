"""Creating LUKS volumes. The header is written last: until then the file opens as nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtool.crypto.luks_keys import new_volume
from imgtool.crypto.luks_options import VolumeOptions, new_password
from imgtool.device import BlockDevice
from imgtool.errors import BadOption
from imgtool.format import NewImage
from imgtool.formats.luks.driver import LuksDevice
from imgtool.storage.base import Storage
from imgtool.storage.encrypted import SECTOR, EncryptedStorage
from imgtool.units import align_up


class NewLuks(NewImage):
    """A volume in the making. What is not written to it reads as random bytes."""

    reads_zero = False

    def __init__(self, device: LuksDevice, storage: Storage) -> None:
        self.device: LuksDevice = device
        self._storage = storage

    def finish(self) -> None:
        self._storage.write_at(SECTOR, self.device.header[SECTOR:])
        self.device.flush()
        self._storage.write_at(0, self.device.header[:SECTOR])
        self._storage.flush()

    def close(self) -> None:
        self.device.abandon()


def judge(size: int, options: Mapping[str, Any]) -> None:
    """Raise :class:`BadOption` for a volume that cannot be made."""
    new_password(options)
    VolumeOptions.from_mapping(options)


def create(
    storage: Storage,
    size: int,
    options: Mapping[str, Any],
    *,
    data: Storage | None = None,
    backing: BlockDevice | None = None,
) -> NewLuks:
    """Make the keys, and a file of the right length; see ``CreateImage``."""
    if backing is not None or data is not None:
        raise BadOption("Backing file not supported for file format 'luks'", filename=storage.name)
    password = new_password(options)
    volume, material, cipher = new_volume(VolumeOptions.from_mapping(options), password)
    size = align_up(size, SECTOR)
    if storage.size():
        # A block device has an old image's header.
        storage.write_zeroes(0, SECTOR)
        storage.flush()
    storage.truncate(volume.payload_offset + size)
    preallocation = options.get("preallocation", "off")
    if preallocation != "off" and size:
        storage.preallocate(volume.payload_offset, size, full=preallocation == "full")
    storage.write_at(volume.slots[0].offset, material)
    contents = EncryptedStorage(storage, cipher, volume.payload_offset)
    device = LuksDevice(storage, volume.build(), volume.payload_offset, contents, size)
    return NewLuks(device, storage)
