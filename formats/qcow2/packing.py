"""Where compressed clusters go: packed one behind the other, byte by byte."""

from __future__ import annotations

from imgtool.formats.qcow2.metadata import Metadata
from imgtool.units import align_down


class Packer:
    """Finds places for compressed clusters, and counts each in every host cluster it touches."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        # Behind the last one placed; at a cluster boundary there is nothing to continue.
        self._end = 0
        self._frees = 0

    def place(self, length: int) -> int:
        """Return the host offset for ``length`` bytes, fewer than a cluster."""
        allocator = self._metadata.allocator
        geometry = self._metadata.header.geometry
        size = geometry.cluster_size
        if self._frees != allocator.frees:
            # The cluster of the last one may be free by now, or somebody else's.
            self._frees, self._end = allocator.frees, 0
        room = -self._end % size
        tail = align_down(self._end, size)
        shared = allocator.refcount(tail // size) if room else 0
        follows = False
        following = 0
        if 0 < shared < geometry.max_refcount:
            if length > room:
                following, _ = allocator.allocate(1)
                follows = following == tail + size
            if length <= room or follows:
                host = self._end
                allocator.change(tail, 1, +1)
                self._end += length
                return host
        else:
            following, _ = allocator.allocate(1)
        self._end = following + length
        return following
