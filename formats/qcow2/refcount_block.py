"""One refcount block as it lies on disk, read and changed in place.

Packed bytes keep this free of numpy: creating an image needs nothing heavier. Whole walks over
many blocks use :mod:`imgtool.formats.qcow2.refcounts` instead.
"""

from __future__ import annotations


class RefcountBlock:
    """Refcounts of ``1 << order`` bits each, packed as the specification says.

    Widths of 8 bits and more are big-endian; below, the entry with the lowest index lies in the
    least significant bits of its byte. Indexes count from the block's first cluster.
    """

    __slots__ = ("_order", "data")

    def __init__(self, data: bytearray, order: int) -> None:
        self.data = data
        self._order = order

    def __len__(self) -> int:
        return len(self.data) * 8 >> self._order

    def __getitem__(self, index: int) -> int:
        if self._order >= 3:
            width = 1 << (self._order - 3)
            return int.from_bytes(self.data[index * width : (index + 1) * width], "big")
        bit = index << self._order
        return self.data[bit >> 3] >> (bit & 7) & ((1 << (1 << self._order)) - 1)

    def __setitem__(self, index: int, value: int) -> None:
        if self._order >= 3:
            width = 1 << (self._order - 3)
            self.data[index * width : (index + 1) * width] = value.to_bytes(width, "big")
            return
        bit = index << self._order
        mask = ((1 << (1 << self._order)) - 1) << (bit & 7)
        self.data[bit >> 3] = self.data[bit >> 3] & ~mask | value << (bit & 7)

    def fill(self, first: int, count: int, value: int) -> None:
        """Set ``count`` refcounts from ``first`` on."""
        if self._order >= 3:
            width = 1 << (self._order - 3)
            start, end = first * width, (first + count) * width
            self.data[start:end] = value.to_bytes(width, "big") * count
            return
        per_byte = 8 >> self._order
        end = first + count
        while first < end and first % per_byte:
            self[first] = value
            first += 1
        whole = (end - first) // per_byte
        if whole > 0:
            pattern = sum(value << (slot << self._order) for slot in range(per_byte))
            start = first // per_byte
            self.data[start : start + whole] = bytes((pattern,)) * whole
            first += whole * per_byte
        while first < end:
            self[first] = value
            first += 1

    def free_run(self, first: int, wanted: int) -> tuple[int, int]:
        """The first run of zero refcounts from ``first`` on: its start and its length.

        At most ``wanted`` long; ``(len(self), 0)`` if there is none.
        """
        size = len(self)
        start = self._next_zero(first)
        if start >= size:
            return size, 0
        limit = min(size, start + wanted)
        if self._order >= 3:
            # Stripping zeros from the left finds the first refcount that is not zero.
            width = 1 << (self._order - 3)
            window = self.data[start * width : limit * width]
            used = len(window) - len(window.lstrip(b"\0"))
            return start, used // width
        end = start + 1
        while end < limit and not self[end]:
            end += 1
        return start, end - start

    def _next_zero(self, first: int) -> int:
        size = len(self)
        if self._order >= 3:
            width = 1 << (self._order - 3)
            position = self.data.find(bytes(width), first * width)
            # A match may begin in the middle of an entry.
            while position >= 0 and position % width:
                aligned = position + width - position % width
                if not any(self.data[aligned : aligned + width]) and aligned < len(self.data):
                    return aligned // width
                position = self.data.find(bytes(width), aligned)
            return position // width if position >= 0 else size
        per_byte = 8 >> self._order
        full = 0xFF if self._order == 0 else None
        while first < size:
            if full is not None and first % per_byte == 0 and self.data[first // per_byte] == full:
                first += per_byte
            elif self[first]:
                first += 1
            else:
                return first
        return size
