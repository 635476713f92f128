"""io: reading, writing and asking a disk range by range, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from imgtool.device import BlockDevice
from imgtool.errors import BadOption, UnsupportedFeature
from imgtool.extent import Extent, Kind

#: Bytes that are read or written at a time.
PIECE = 4 << 20


def pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range into offsets and lengths of at most ``PIECE`` bytes."""
    for start in range(offset, offset + length, PIECE):
        yield start, min(PIECE, offset + length - start)


def read(device: BlockDevice, offset: int, length: int) -> Iterator[memoryview]:
    """Read a range piece by piece; each is valid until the next is asked for."""
    buffer = memoryview(bytearray(min(length, PIECE)))
    for start, count in pieces(offset, length):
        device.read_into(start, buffer[:count])
        yield buffer[:count]


def write(device: BlockDevice, offset: int, length: int, pattern: bytes) -> None:
    """Fill a range with ``pattern``, over and over again from its first byte."""
    buffer = _repeated(pattern, min(length, PIECE) + len(pattern))
    for start, count in pieces(offset, length):
        phase = (start - offset) % len(pattern)
        device.write_at(start, buffer[phase : phase + count])


def write_compressed(device: BlockDevice, offset: int, length: int, pattern: bytes) -> None:
    """Fill whole clusters with ``pattern``, compressed where that makes them smaller.

    Raises :class:`UnsupportedFeature` if the image cannot hold compressed clusters, and
    :class:`BadOption` for a range that does not consist of whole ones (the last may be cut off by
    the disk's end).
    """
    size = device.encoded_size
    if not size:
        raise UnsupportedFeature(("compressed clusters",), filename=device.name)
    if offset % size or (length % size and offset + length < device.size):
        raise BadOption("Compressed data is written in whole clusters", filename=device.name)
    buffer = _repeated(pattern, size + len(pattern))
    for start in range(offset, offset + length, size):
        phase = (start - offset) % len(pattern)
        inside = min(size, device.size - start)
        cluster = bytearray(size)
        cluster[:inside] = buffer[phase : phase + inside]
        (encoded,) = device.encode(cluster)
        if encoded is None:
            device.write_at(start, memoryview(cluster)[:inside])
        else:
            device.write_encoded(start, [encoded])


def _repeated(pattern: bytes, length: int) -> memoryview:
    return memoryview(pattern * -(-length // len(pattern)))


def holds(device: BlockDevice, offset: int, length: int, byte: int) -> bool:
    """Whether every byte of a range has the value ``byte``."""
    expected = bytes([byte]) * min(length, PIECE)
    # startswith compares memory with memory, as comparing memoryviews does not.
    return all(expected.startswith(piece) for piece in read(device, offset, length))


def allocation(
    device: BlockDevice, offset: int = 0, length: int | None = None
) -> Iterator[tuple[int, int, bool]]:
    """Cover a range with offsets, lengths, and whether the image itself has something there.

    What its backing images have does not count; zeros that it has written down do.
    """
    for allocated, group in groupby(device.extents(offset, length), _is_allocated):
        extents = list(group)
        yield extents[0].offset, extents[-1].end - extents[0].offset, allocated


def _is_allocated(extent: Extent) -> bool:
    return extent.depth == 0 and extent.kind is not Kind.UNALLOCATED
