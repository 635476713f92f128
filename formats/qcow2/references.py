"""The host clusters that an L1 table references, directly and through its L2 tables, in bulk."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import COMPRESSED, L1_OFFSET_MASK, L2_OFFSET_MASK
from imgtool.formats.qcow2.tables import read_table
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Clusters = NDArray[np.uint64]

#: Up to here tables are looked at one by one, whatever the host stores of them.
MANY_TABLES = 4096
#: L1 entries that are looked at together.
_STEP = 1 << 14


def referenced(
    storage: Storage, header: Header, l1: array[int], stored: bytearray | None = None
) -> Iterator[Clusters]:
    """The indexes of the clusters that ``l1`` references, in an array for each of its L2 tables.

    A cluster appears as often as it is referenced: packed compressed clusters share theirs. Tables
    that lie in holes of the file have but their own cluster, and come first, thousands at a time;
    ``stored``, from :func:`which_stored`, says which they are, for whoever goes through all of this
    twice and has to see the same.
    """
    geometry = header.geometry
    stored = which_stored(storage, header, l1) if stored is None else stored
    yield from _in_holes(geometry, l1, stored)
    for entry, read in zip(l1, stored, strict=True):
        offset = entry & L1_OFFSET_MASK
        if not offset or not read:
            continue
        if offset % geometry.cluster_size:
            raise CorruptImage("An L2 table is not aligned to a cluster", offset)
        table = read_table(storage, offset, geometry.cluster_size // 8, "An L2 table")
        yield table_references(geometry, table, offset, external=header.has_data_file)


def which_stored(storage: Storage, header: Header, l1: array[int]) -> bytearray:
    """For each entry of ``l1`` 0 if it has no table, or one that lies in a hole, else 1."""
    if len(l1) <= MANY_TABLES:
        return bytearray(1 if entry & L1_OFFSET_MASK else 0 for entry in l1)
    from imgtool.formats.qcow2.stored import stored_tables

    return stored_tables(storage, header.geometry, l1)


def spend_on(storage: Storage, header: Header, stored: bytearray) -> None:
    """Count the work of going through those tables, before anything is changed because of it."""
    storage.account.spend(stored.count(1) * (1 + (header.geometry.cluster_size >> 10)))


def _in_holes(geometry: Geometry, l1: array[int], stored: bytearray) -> Iterator[Clusters]:
    """The clusters of the tables that are not stored."""
    import numpy as np

    for start in range(0, len(l1), _STEP):
        entries = np.frombuffer(l1, np.uint64)[start : start + _STEP]
        entries = entries[np.frombuffer(stored, np.uint8)[start : start + _STEP] == 0]
        offsets = entries & np.uint64(L1_OFFSET_MASK)
        if bool(np.any(offsets)):
            yield offsets[offsets != 0] >> np.uint64(geometry.cluster_bits)


def table_references(
    geometry: Geometry, table: array[int], offset: int, *, external: bool
) -> Clusters:
    """What the L2 ``table`` at host ``offset`` references, itself first."""
    import numpy as np

    own = np.array([offset >> geometry.cluster_bits], dtype=np.uint64)
    entries = np.frombuffer(table, dtype=np.uint64)[:: geometry.l2_entry_size // 8]
    compressed = (entries & np.uint64(COMPRESSED)) != 0
    found = [own]
    if not external:
        # In an external data file clusters are not counted.
        host = entries[~compressed] & np.uint64(L2_OFFSET_MASK)
        host = host[host != 0]
        if bool(np.any(host & np.uint64(geometry.cluster_size - 1))):
            raise CorruptImage("A data cluster is not aligned to the cluster size", offset)
        found.append(host >> np.uint64(geometry.cluster_bits))
    if bool(np.any(compressed)):
        found.append(_compressed_clusters(geometry, entries[compressed]))
    return np.concatenate(found)


def _compressed_clusters(geometry: Geometry, entries: Clusters) -> Clusters:
    """Every host cluster that compressed clusters touch."""
    import numpy as np

    shift = 62 - (geometry.cluster_bits - 8)
    start = entries & np.uint64((1 << shift) - 1)
    sectors = (entries >> np.uint64(shift)) & np.uint64((1 << (geometry.cluster_bits - 8)) - 1)
    end = (start & ~np.uint64(511)) + (sectors + np.uint64(1)) * np.uint64(512)
    bits = np.uint64(geometry.cluster_bits)
    first = start >> bits
    last = (end - np.uint64(1)) >> bits
    # A length counted in sectors from the first one spans at most two clusters more.
    return np.concatenate(
        [first, *(first[first + np.uint64(more) <= last] + np.uint64(more) for more in (1, 2))]
    )
