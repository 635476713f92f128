"""One refcount block as it lies on disk, read and changed in place.

Packed bytes keep this free of numpy: creating an image needs nothing heavier. Whole walks over
many blocks use :mod:`imgtool.formats.qcow2.refcounts` instead.
"""

from __future__ import annotations

from functools import cache

#: How many refcounts are compared at a time.
_LOOK_AHEAD = 1024


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

    def alike(self, first: int, count: int) -> int:
        """How many refcounts from ``first`` on, at most ``count``, are seen to be the same."""
        value, end = self[first], first + min(count, _LOOK_AHEAD)
        if self._order >= 3:
            width = 1 << (self._order - 3)
            unit, whole = self.data[first * width : (first + 1) * width], end
        else:
            per_byte = 8 >> self._order
            unit, whole = bytearray((self._repeated(value),)), end - end % per_byte
        at = first + 1
        while at < end and not self._starts_byte(at) and self[at] == value:
            at += 1
        if at < whole and self._starts_byte(at):
            packed = self.data[self._place(at) : self._place(whole)]
            if packed == unit * (len(packed) // len(unit)):
                at = whole
        while at < end and self[at] == value:
            at += 1
        return at - first

    def fill(self, first: int, count: int, value: int) -> None:
        """Set ``count`` refcounts from ``first`` on."""
        if self._order >= 3:
            width = 1 << (self._order - 3)
            start, end = first * width, (first + count) * width
            self.data[start:end] = value.to_bytes(width, "big") * count
            return
        end = first + count
        while first < end and not self._starts_byte(first):
            self[first] = value
            first += 1
        start, stop = self._place(first), self._place(end)
        if start < stop:
            self.data[start:stop] = bytes((self._repeated(value),)) * (stop - start)
            first += (stop - start) * (8 >> self._order)
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
            width = 1 << (self._order - 3)
            window = self.data[start * width : limit * width]
            return start, _leading_zeros(window) // width
        end = start + 1
        while end < limit and not self._starts_byte(end) and not self[end]:
            end += 1
        if end < limit and self._starts_byte(end):
            window = self.data[self._place(end) : self._place(limit)]
            end += _leading_zeros(window) * (8 >> self._order)
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
                position += width - position % width
                if any(self.data[position : position + width]) or position >= len(self.data):
                    position = self.data.find(bytes(width), position)
            return position // width if position >= 0 else size
        while first < size and not self._starts_byte(first):
            if not self[first]:
                return first
            first += 1
        window = self.data[self._place(first) :]
        first += (len(window) - len(window.lstrip(_full_bytes(self._order)))) * (8 >> self._order)
        while first < size and self[first]:
            first += 1
        return first

    # Where refcounts are narrower than bytes

    def _place(self, index: int) -> int:
        return index << self._order >> 3

    def _starts_byte(self, index: int) -> bool:
        return not index << self._order & 7

    def _repeated(self, value: int) -> int:
        """A byte all of whose refcounts are ``value``."""
        return sum(value << bit for bit in range(0, 8, 1 << self._order))


def _leading_zeros(window: bytearray) -> int:
    """How many bytes there are before the first that is not zero."""
    # Mostly all of them are zero, and comparing is faster than stripping.
    if window == bytes(len(window)):
        return len(window)
    return len(window) - len(window.lstrip(b"\0"))


@cache
def _full_bytes(order: int) -> bytes:
    """The bytes without any refcount of zero."""
    mask = (1 << (1 << order)) - 1
    return bytes(
        byte for byte in range(256) if all(byte >> bit & mask for bit in range(0, 8, 1 << order))
    )
