"""FlatDevice: a disk whose every byte has its place in one file from the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from imgtool.device import BlockDevice
from imgtool.extent import Extent
from imgtool.storage.base import Storage


class FlatDevice(BlockDevice):
    """What is written lies where it is to lie at once: only the host has to be waited for.

    Whatever changes the file sets ``_unsynced`` before it does; closing waits for that.
    """

    def __init__(self, storage: Storage, size: int) -> None:
        self.name = storage.name
        self._storage = storage
        self._size = size
        #: Whether anything was changed that nobody has waited for yet.
        self._unsynced = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def children(self) -> Mapping[str, BlockDevice | Storage]:
        return {"file": self._storage}

    def _link(self, extents: Iterable[Extent]) -> None:
        """Do nothing: there is no mapping."""

    def _flush(self) -> None:
        self._unsynced = False
        self._storage.flush()

    def abandon(self) -> None:
        """Close the file without waiting for what was written: nobody is to use it."""
        self._unsynced = False
        self.close()

    def close(self) -> None:
        try:
            if self._unsynced:
                self._flush()
        finally:
            self._storage.close()
