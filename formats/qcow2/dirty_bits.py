"""The contents of a dirty bitmap: one bit for each ``granularity`` bytes of the disk.

Source: the specification's sections "Bitmap table" and "Bitmap data": bits are stored in bytes
from the least significant one up.
"""

from __future__ import annotations

from collections.abc import Iterator

from imgtool.errors import BadOption, CorruptImage, ImageError, OverBudget
from imgtool.formats.qcow2.bitmaps import MAX_MEMORY, Bitmap, read_bitmaps
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import BITMAP_OFFSET_MASK, BitmapFlag
from imgtool.formats.qcow2.tables import read_table
from imgtool.storage.base import Storage
from imgtool.units import div_round_up

#: Bits looked at in one go when runs are sought.
_STEP = 8 << 20


class DirtyBits:
    """Which parts, of ``granularity`` bytes each, of a disk of ``size`` bytes are dirty."""

    def __init__(self, size: int, granularity: int, data: bytearray | None = None) -> None:
        self.size = size
        self.granularity = granularity
        self.count = div_round_up(size, granularity)
        needed = div_round_up(self.count, 8)
        self.data = bytearray(needed) if data is None else data[:needed]
        self.data.extend(bytes(needed - len(self.data)))
        self._clip()

    def _clip(self) -> None:
        # Bits behind the end of the disk mean nothing, and are kept zero.
        if self.count % 8:
            self.data[-1] &= (1 << self.count % 8) - 1

    def mark(self, offset: int, length: int) -> None:
        """Set the bits of every part that a range of bytes inside the disk touches."""
        if not length:
            return
        first = offset // self.granularity
        last = (offset + length - 1) // self.granularity
        low, high = first >> 3, last >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
        if low == high:
            self.data[low] |= head & tail
            return
        self.data[low] |= head
        self.data[high] |= tail
        self.data[low + 1 : high] = b"\xff" * (high - low - 1)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The dirty ranges, as ``(offset, length)`` in bytes, in order, clipped to the disk."""
        import numpy as np

        pending: tuple[int, int] | None = None
        for start in range(0, len(self.data), _STEP // 8):
            chunk = np.frombuffer(self.data[start : start + _STEP // 8], dtype=np.uint8)
            if not chunk.any():
                continue
            bits = np.unpackbits(chunk, bitorder="little")
            edges = np.flatnonzero(np.diff(bits, prepend=0, append=0))
            for first, end in edges.reshape(-1, 2).tolist():
                low, high = start * 8 + first, start * 8 + end
                if pending is not None and pending[1] == low:
                    pending = (pending[0], high)
                    continue
                if pending is not None:
                    yield self._range(*pending)
                pending = (low, high)
        if pending is not None:
            yield self._range(*pending)

    def _range(self, first: int, end: int) -> tuple[int, int]:
        offset = first * self.granularity
        return offset, min(end * self.granularity, self.size) - offset

    def resized(self, size: int) -> DirtyBits:
        """The same bits for a disk of another size; what is added is clean."""
        return DirtyBits(size, self.granularity, self.data)


def check_memory(storage: Storage, name: str, size: int, granularity: int, held: int = 0) -> None:
    """Raise :class:`OverBudget` if a bitmap of a disk of ``size`` bytes takes too much memory.

    ``held`` is how many bytes other bitmaps of the image have taken.
    """
    needed = div_round_up(size, granularity * 8)
    what = f"The bitmap '{name}'"
    if held + needed > MAX_MEMORY:
        raise OverBudget(
            what,
            needed,
            MAX_MEMORY - held,
            f"{what} needs {needed} bytes of memory, and the bitmaps of an image get {MAX_MEMORY} "
            "in all",
            filename=storage.name,
        )
    storage.account.check(held + needed, what)


def load_bits(storage: Storage, header: Header, bitmap: Bitmap, size: int) -> DirtyBits:
    """Read the contents of ``bitmap`` for a disk of ``size`` bytes.

    Raises :class:`CorruptImage` where its table does not fit the disk, or leads out of the file,
    and :class:`OverBudget` where the contents are too large.
    """
    check_memory(storage, bitmap.name, size, bitmap.granularity)
    bits = DirtyBits(size, bitmap.granularity)
    cluster_size = header.geometry.cluster_size
    if bitmap.table_size != div_round_up(len(bits.data), cluster_size):
        raise CorruptImage(
            f"The table of the bitmap '{bitmap.name}' does not fit the disk", bitmap.table_offset
        )
    table = read_table(storage, bitmap.table_offset, bitmap.table_size, "A bitmap table")
    for index, entry in enumerate(table):
        start = index * cluster_size
        length = min(cluster_size, len(bits.data) - start)
        offset = entry & BITMAP_OFFSET_MASK
        if offset:
            if offset % cluster_size:
                raise CorruptImage("A bitmap's data is not aligned to a cluster", offset)
            bits.data[start : start + length] = storage.read_exact(offset, length, "Bitmap data")
        elif entry & 1:
            bits.data[start : start + length] = b"\xff" * length
    bits._clip()
    return bits


def load_named(storage: Storage, header: Header, name: str, size: int) -> DirtyBits:
    """Read the contents of the bitmap called ``name``, which must have been stored properly."""
    for bitmap in read_bitmaps(storage, header):
        if bitmap.name == name:
            if bitmap.flags & BitmapFlag.IN_USE:
                raise inconsistent(name)
            return load_bits(storage, header, bitmap, size)
    raise not_found(name)


def not_found(name: str) -> BadOption:
    """The error for a bitmap that does not exist."""
    return BadOption(f"Dirty bitmap '{name}' not found")


def inconsistent(name: str) -> ImageError:
    """The error for using a bitmap that was not stored properly."""
    return ImageError(
        f"Bitmap '{name}' is inconsistent and cannot be used: all that can be done is to remove it"
    )
