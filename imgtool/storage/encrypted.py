"""EncryptedStorage: a part of a storage whose sectors are encrypted, seen as what they hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgtool.storage.base import Storage
from imgtool.storage.bounds import check_range, zero_pieces
from imgtool.units import align_down, align_up

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from imgtool.crypto.sectors import SectorCipher

SECTOR = 512

#: Bytes that are encrypted before they are written.
_PIECE = 1 << 20


class EncryptedStorage(Storage):
    """The bytes of ``storage`` from ``start`` on, decrypted; sectors count from there.

    A hole has no meaning here: what was never written reads as what its zeros decrypt to. So does
    what lies past the end of the file. Host files are never copied as they are (no ``identity``,
    no ``fileno``). Writes of parts of a sector read the rest of it first, one at a time.
    """

    def __init__(self, storage: Storage, cipher: SectorCipher, start: int = 0) -> None:
        self.name = storage.name
        self.read_only = storage.read_only
        self.alignment = max(SECTOR, storage.alignment)
        self._storage = storage
        self._cipher = cipher
        self._start = start
        self._merging = threading.Lock()

    def size(self) -> int:
        return max(0, self._storage.size() - self._start)

    def allocated(self) -> int:
        return self._storage.allocated()

    # Reading

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        for start, part in _parts(offset, view):
            if _is_whole(start, part):
                self._storage.read_into(self._start + start, part)
                self._cipher.decrypt(start // SECTOR, part, part)
            else:
                skip = start % SECTOR
                part[:] = self._sector(start - skip)[skip : skip + len(part)]
        return max(0, min(len(view), self.size() - offset))

    def _sector(self, offset: int) -> memoryview:
        sector = memoryview(bytearray(SECTOR))
        self._storage.read_into(self._start + offset, sector)
        self._cipher.decrypt(offset // SECTOR, sector, sector)
        return sector

    # Writing

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data)
        if not view.nbytes:
            return
        for start, part in _parts(offset, view.cast("B")):
            if _is_whole(start, part):
                self._write_sectors(start, part)
                continue
            skip = start % SECTOR
            with self._merging:
                sector = self._sector(start - skip)
                sector[skip : skip + len(part)] = part
                self._write_sectors(start - skip, sector)

    def _write_sectors(self, offset: int, view: memoryview) -> None:
        encrypted = memoryview(bytearray(min(len(view), _PIECE)))
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            target = encrypted[: len(piece)]
            self._cipher.encrypt((offset + start) // SECTOR, piece, target)
            self._storage.write_at(self._start + offset + start, target)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Write zeros, encrypted: no hole reads as zeros here."""
        check_range(offset, length, self.name)
        for start, piece in zero_pieces(offset, length):
            self.write_at(start, piece)

    def discard(self, offset: int, length: int) -> None:
        self._storage.discard(self._start + offset, length)

    def truncate(self, size: int) -> None:
        """Set the length; what comes into being reads as what zeros decrypt to."""
        self._storage.truncate(self._start + size)

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        """Reserve host storage by writing zeros, encrypted; what the range held is overwritten."""
        self.write_zeroes(offset, length)

    def flush(self) -> None:
        self._storage.flush()

    def close(self) -> None:
        self._storage.close()


def _parts(offset: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Divide a range into part of a sector, whole sectors, and part of a sector."""
    end = offset + len(view)
    first = min(end, align_up(offset, SECTOR))
    last = max(first, align_down(end, SECTOR))
    for start, stop in ((offset, first), (first, last), (last, end)):
        if start < stop:
            yield start, view[start - offset : stop - offset]


def _is_whole(offset: int, part: memoryview) -> bool:
    return offset % SECTOR == 0 and len(part) % SECTOR == 0
