"""New clusters behind everything that an image has or refers to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from imgtool.errors import ImageError
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.geometry import MAX_HOST_OFFSET

#: What may be added to a file in one go, unless it holds more than that already; bytes.
_MOST_ADDED = 256 << 20


class Fresh:
    """Hands out host clusters at the end of the file.

    They are never taken out of what the refcounts call free: the refcounts are what is wrong. The
    caller sees to it that no entry which is still believed points past the end of the file: there
    it reads as zeros, and would read as what is put there. However much of a small file lies upon
    each other, what moves apart is bounded: ``room`` clusters are left.
    """

    def __init__(self, state: State) -> None:
        self._storage, self._geometry = state.storage, state.geometry
        held = self._geometry.clusters(state.file_size)
        #: The index of the next cluster.
        self.next = held + int(bool(state.tally.window(held, 1).any()))
        self.room = max(_MOST_ADDED, self._storage.allocated()) >> self._geometry.cluster_bits
        self._zeros = 0
        self._zero_uses = 0
        self._avoided: Sequence[int] = ()

    def avoid(self, clusters: Sequence[int]) -> None:
        """Leave clusters, in order, out that entries name which are believed until replaced."""
        self._avoided = clusters

    def take(self, clusters: int) -> int:
        """Take clusters that lie together; return the index of the first. Writes nothing."""
        first = self.next
        place = bisect_left(self._avoided, first)
        while place < len(self._avoided) and self._avoided[place] < first + clusters:
            first = self._avoided[place] + 1
            place += 1
        self.next = first + clusters
        if self.next << self._geometry.cluster_bits > MAX_HOST_OFFSET:
            raise ImageError("The file is too long for anything to be added to it")
        return first

    def place(self, data: bytes) -> int:
        """Write ``data``, padded with zeros, to clusters of its own; return their host offset."""
        clusters = self._geometry.clusters(len(data))
        if clusters > self.room:
            raise ImageError("Too much of the image lies upon each other to be moved apart")
        self.room -= clusters
        offset = self.take(clusters) << self._geometry.cluster_bits
        self._storage.write_at(offset, data.ljust(clusters << self._geometry.cluster_bits, b"\0"))
        return offset

    def zeros(self, wanted: int, weight: int) -> tuple[int, int]:
        """The host offset of a cluster of zeros, and how many of ``wanted`` entries may share it.

        Each of the entries is counted ``weight`` times.
        """
        room = (self._geometry.max_refcount - self._zero_uses) // weight
        if not self._zeros or not room:
            self._zeros = self.place(bytes(self._geometry.cluster_size))
            self._zero_uses = 0
            room = max(1, self._geometry.max_refcount // weight)
        count = min(wanted, room)
        self._zero_uses += count * weight
        return self._zeros, count
