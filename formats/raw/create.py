"""Creating raw images: a file of the right length, with host storage reserved on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtool.device import BlockDevice
from imgtool.errors import BadOption
from imgtool.format import NewImage
from imgtool.formats.raw.driver import SECTOR, RawDevice
from imgtool.formats.raw.short import ShortStorage
from imgtool.storage.base import Storage
from imgtool.units import align_up


class NewRawImage(NewImage):
    """A raw file in the making. It gets its last sector last, so it is short until it is done."""

    def __init__(self, storage: Storage, size: int) -> None:
        self.device: RawDevice = RawDevice(storage, fresh_size=size)
        self._storage = storage
        self._size = size

    def finish(self) -> None:
        self.device.flush()
        if isinstance(self._storage, ShortStorage):
            self._storage.complete()
        self._storage.truncate(self._size)
        self._storage.flush()

    def close(self) -> None:
        self.device.abandon()


def create(
    storage: Storage,
    size: int,
    options: Mapping[str, Any],
    *,
    data: Storage | None = None,
    backing: BlockDevice | None = None,
) -> NewRawImage:
    """Make the file ``size`` bytes long, rounded up to a sector; see ``CreateImage``."""
    if backing is not None or data is not None:
        raise BadOption("Backing file not supported for file format 'raw'", filename=storage.name)
    size = align_up(size, SECTOR)
    if 0 < storage.size() < size:
        raise BadOption(
            f"The device is smaller ({storage.size()} bytes) than the image ({size} bytes)",
            filename=storage.name,
        )
    if not storage.size() and size:
        storage = ShortStorage(storage, size)
    preallocation = options.get("preallocation", "off")
    if preallocation != "off" and size:
        storage.preallocate(0, size, full=preallocation == "full")
    return NewRawImage(storage, size)
