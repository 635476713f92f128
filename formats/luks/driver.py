"""The luks driver: a disk behind a LUKS header, encrypted sector by sector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from imgtool.crypto.luks_header import Volume
from imgtool.crypto.luks_options import password_of
from imgtool.device import Limits
from imgtool.errors import BadOption, CorruptImage, ImageError
from imgtool.extent import Extent, Kind
from imgtool.flat import FlatDevice
from imgtool.schema import luks
from imgtool.storage.base import Storage
from imgtool.storage.encrypted import SECTOR, EncryptedStorage
from imgtool.units import align_up

if TYPE_CHECKING:
    from imgtool.chain import Opener


class LuksDevice(FlatDevice):
    """The payload of a LUKS volume in ``storage``.

    ``header`` is the header as it stands in the file. ``contents`` is the payload decrypted, None
    if the volume was opened for its metadata alone.
    """

    format = "luks"
    stores_zeros = True

    def __init__(
        self,
        storage: Storage,
        header: bytes,
        payload_offset: int,
        contents: EncryptedStorage | None,
        size: int,
    ) -> None:
        super().__init__(storage, size)
        self.read_only = storage.read_only or contents is None
        self.header = header
        self._payload_offset = payload_offset
        self._locked_contents = contents

    @property
    def limits(self) -> Limits:
        return Limits(alignment=SECTOR)

    @property
    def _contents(self) -> EncryptedStorage:
        if self._locked_contents is None:
            raise ImageError(
                "It was opened without its password, for its metadata only", filename=self.name
            )
        return self._locked_contents

    def _read(self, offset: int, view: memoryview) -> None:
        self._contents.read_into(offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        # The host file has the bytes, but not as they are.
        yield Extent(offset, length, Kind.DATA)

    def _write(self, offset: int, view: memoryview) -> None:
        self._unsynced = True
        self._contents.write_at(offset, view)

    def _reserve(self, offset: int, length: int) -> list[Extent]:
        self._unsynced = True
        return [Extent(offset, length, Kind.DATA, self._contents, offset)]

    def _resize(self, size: int, preallocation: str) -> None:
        """Set the size. As in any LUKS volume, a part never written reads as random bytes."""
        if preallocation not in ("off", "falloc", "full"):
            raise BadOption(f"Preallocation mode '{preallocation}' is not for luks images")
        size = align_up(size, SECTOR)
        self._unsynced = True
        if preallocation != "off" and size > self._size:
            self._storage.preallocate(
                self._payload_offset + self._size, size - self._size, full=preallocation == "full"
            )
        self._storage.truncate(self._payload_offset + size)
        self._size = size


def open_device(storage: Storage, opener: Opener, options: Mapping[str, Any]) -> LuksDevice:
    """Open a volume and unlock it with ``key_secret``, unless only metadata is wanted.

    Raises :class:`CorruptImage` for broken headers and :class:`ImageError` for wrong passwords.
    """
    header = bytes(storage.read_exact(0, luks.HEADER.sizeof(), "The LUKS header"))
    payload_offset = luks.read(header).payload_offset * luks.SECTOR
    size = align_up(storage.size(), SECTOR) - payload_offset
    if size < 0:
        raise CorruptImage("The payload lies past the end of the file", payload_offset)
    contents = None
    if opener.unlocks:
        from imgtool.crypto.luks_keys import unlock

        password = password_of(options)
        volume = Volume.parse(header)

        def read(offset: int, length: int) -> bytes:
            return bytes(storage.read_exact(offset, length, "LUKS key material"))

        cipher = unlock(volume, read, password)
        contents = EncryptedStorage(storage, cipher, payload_offset)
    return LuksDevice(storage, header, payload_offset, contents, size)
