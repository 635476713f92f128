"""Turning an image of version 3 into one of version 2, which has no zero clusters.

Source: the specification's sections "Header", and for the zero flag "Standard Cluster Descriptor".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from imgtool.errors import CorruptImage, ImageError
from imgtool.extent import Kind
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    ZERO_FLAG,
    Autoclear,
    Compatible,
    Compression,
    ExtensionType,
    Incompatible,
)
from imgtool.formats.qcow2.tables import read_l1, read_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgtool.formats.qcow2.writable import WritableQcow2

    Progress = Callable[[int, int], None]

#: About what it takes, in bytes, to remember an entry of a snapshot's L1 table.
_NAMED_BYTES = 256


def judge_downgrade(device: WritableQcow2) -> None:
    """Raise :class:`ImageError` if the image has what version 2 has not."""
    header = device.header
    if header.has_data_file:
        raise ImageError("Cannot downgrade an image with a data file")
    left = header.incompatible & ~Incompatible.DIRTY
    if left:
        # Compressed clusters would be read as what they are not.
        raise ImageError(f"Cannot downgrade an image with incompatible features {int(left):#x} set")
    for snapshot in device.snapshots:
        # Version 2 does not record the size of a snapshot's disk.
        if snapshot.vm_state_size or snapshot.disk_size not in (None, header.size):
            raise ImageError("Internal snapshots prevent downgrade of image")
    if len(device.bitmap_store):
        raise ImageError("Persistent bitmaps prevent downgrade of image: remove them first")
    if device.backing is not None:
        for table in _snapshot_tables(device):
            places = table.zeros.nonzero()[0]
            if len(places) and table.guest_offset(device, int(places[0])) < device.backing.size:
                raise ImageError(
                    "Internal snapshots prevent downgrade of image: they have zero clusters over "
                    "a backing file"
                )


def downgrade(device: WritableQcow2, progress: Progress | None) -> None:
    """Turn zero clusters into what version 2 has, and then write a header of version 2."""
    backing = device.backing
    coverage = device.header.geometry.l2_coverage
    for start in range(0, device.size, coverage):
        for extent in list(device.own_extents(start, min(coverage, device.size - start))):
            if extent.kind is not Kind.ZERO:
                continue
            if backing is None or extent.offset >= backing.size:
                device.unallocate(extent.offset, extent.length)
            else:
                device.allocate_zeroes(extent.offset, extent.length)
        if progress is not None:
            progress(start, device.size)
    device.flush()
    _unmap_in_snapshots(device)
    device.metadata.switch_header(
        device.header._replace(
            version=2,
            header_length=schema.HEADER_V2_LENGTH,
            incompatible=Incompatible(0),
            compatible=Compatible(0),
            autoclear=Autoclear(0),
            compression=Compression.ZLIB,
            unknown_fields=b"",
        ).with_extension(ExtensionType.FEATURE_NAMES, None)
    )


class _Table(NamedTuple):
    """An L2 table of snapshots, and how often they name it."""

    l1_index: int
    offset: int
    uses: int
    entries: NDArray[np.uint64]
    zeros: NDArray[np.bool_]

    def guest_offset(self, device: WritableQcow2, place: int) -> int:
        geometry = device.header.geometry
        return self.l1_index * geometry.l2_coverage + (place << geometry.cluster_bits)


def _snapshot_tables(device: WritableQcow2) -> Iterator[_Table]:
    import numpy as np

    storage, geometry = device.storage, device.header.geometry
    named: Counter[tuple[int, int]] = Counter()
    for snapshot in device.snapshots:
        storage.account.spend(1 + (snapshot.l1_size * 8 >> 10))
        storage.account.check(
            (len(named) + snapshot.l1_size) * _NAMED_BYTES, "Snapshots' L2 tables"
        )
        l1 = read_l1(storage, snapshot.l1_table_offset, snapshot.l1_size, geometry)
        named.update((index, entry & L1_OFFSET_MASK) for index, entry in enumerate(l1) if entry)
    for (index, offset), uses in named.items():
        if offset % geometry.cluster_size:
            raise CorruptImage("An L2 table is not aligned to a cluster", offset)
        storage.account.spend(1 + (geometry.cluster_size >> 10))
        table = read_table(storage, offset, geometry.cluster_size // 8, "An L2 table")
        entries = np.frombuffer(table, dtype=np.uint64).copy()
        flags = entries & np.uint64(COMPRESSED | ZERO_FLAG)
        yield _Table(index, offset, uses, entries, flags == np.uint64(ZERO_FLAG))


def _unmap_in_snapshots(device: WritableQcow2) -> None:
    """Leave zero clusters of snapshots to be zeros because nothing is mapped there.

    An entry that is changed reads the same before and after, so tables are changed in place.
    """
    import numpy as np

    metadata = device.metadata
    for table in _snapshot_tables(device):
        if not table.zeros.any():
            continue
        hosts = table.entries[table.zeros] & np.uint64(L2_OFFSET_MASK)
        table.entries[table.zeros] = 0
        device.storage.write_at(table.offset, table.entries.astype(">u8").tobytes())
        for host in hosts[hosts != 0].tolist():
            for _ in range(table.uses):
                metadata.let_go(host, 1, discard=True)
        metadata.flush()
