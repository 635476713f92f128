"""Refcounts: the refcount table, and refcount blocks of every width as arrays of integers.

Source: the specification's section "Host cluster management".
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import REFCOUNT_OFFSET_MASK
from imgtool.formats.qcow2.tables import read_table
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_refcount_table(storage: Storage, header: Header) -> array[int]:
    """The refcount table: host offsets of refcount blocks, 0 for those that do not exist."""
    entries = header.refcount_table_clusters * header.geometry.cluster_size // 8
    storage.account.check(entries * 8, "The refcount table")
    return read_table(storage, header.refcount_table_offset, entries, "The refcount table")


def unpack_block(data: bytes | bytearray, refcount_order: int) -> NDArray[np.unsignedinteger[Any]]:
    """The refcounts of one block in host byte order; widths under 8 bits come as ``uint8``."""
    import numpy as np

    if refcount_order >= 3:
        width = 1 << (refcount_order - 3)
        return np.frombuffer(data, dtype=f">u{width}").astype(f"=u{width}")
    raw = np.frombuffer(data, dtype=np.uint8)
    bits = 1 << refcount_order
    # Within a byte the entry with the lowest index has the least significant bits.
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    entries: NDArray[np.uint8] = (raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return entries.ravel()


def pack_block(refcounts: NDArray[np.unsignedinteger[Any]], refcount_order: int) -> bytes:
    """The inverse of :func:`unpack_block`."""
    import numpy as np

    if refcount_order >= 3:
        return refcounts.astype(f">u{1 << (refcount_order - 3)}").tobytes()
    bits = 1 << refcount_order
    grouped = refcounts.astype(np.uint8).reshape(-1, 8 // bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(grouped << shifts, axis=1)
    return packed.astype(np.uint8).tobytes()


def read_block(storage: Storage, header: Header, offset: int) -> NDArray[np.unsignedinteger[Any]]:
    """Read the refcount block at host ``offset``."""
    cluster_size = header.geometry.cluster_size
    if offset % cluster_size:
        raise CorruptImage("A refcount block is not aligned to a cluster", offset)
    data = storage.read_exact(offset, cluster_size, "A refcount block")
    return unpack_block(data, header.geometry.refcount_order)


def blocks(
    storage: Storage, header: Header
) -> Iterator[tuple[int, NDArray[np.unsignedinteger[Any]]]]:
    """Every refcount block that exists, with the host cluster index of its first entry."""
    per_block = header.geometry.refcount_block_entries
    for index, entry in enumerate(read_refcount_table(storage, header)):
        offset = entry & REFCOUNT_OFFSET_MASK
        if offset:
            yield index * per_block, read_block(storage, header, offset)


def runs(indexes: NDArray[np.unsignedinteger[Any]]) -> Iterator[tuple[int, int]]:
    """Join cluster indexes that follow one another: ``(first, count)``."""
    import numpy as np

    starts = np.flatnonzero(indexes[1:] - indexes[:-1] != 1) + 1
    edges = [0, *starts.tolist(), len(indexes)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            yield int(indexes[start]), end - start
