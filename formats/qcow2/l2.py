"""What L2 entries mean: cluster and subcluster types, one at a time and in bulk.

Source: the specification's sections "Cluster mapping", "Standard Cluster Descriptor",
"Compressed Clusters Descriptor" and "Extended L2 Entries".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgtool.errors import CorruptImage
from imgtool.extent import Extent, Kind
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L2_OFFSET_MASK,
    SUBCLUSTERS,
    ZERO_FLAG,
)
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Up to here a loop over entries beats numpy, whose import alone costs as much as 100,000 entries.
_BULK_ENTRIES = 256
#: Entries, or subclusters, that numpy is given at a time: a table may have four million.
_BULK_STEP = 1 << 16

_KINDS = (Kind.UNALLOCATED, Kind.ZERO, Kind.DATA, Kind.COMPRESSED)
_UNALLOCATED, _ZERO, _DATA, _COMPRESSED = range(4)


@dataclass(frozen=True)
class L2Reader:
    """Turns runs of L2 entries into extents.

    ``data`` is where data clusters lie (the image's own file or its external data file) and
    ``file`` where compressed ones do. Version 2 has no clusters that read as zeros: an entry that
    says so is invalid there, as it means one thing to some readers and another to others.
    """

    geometry: Geometry
    file: Storage
    data: Storage
    version: int
    external_data: bool

    def extents(self, table: array[int], first: int, count: int, offset: int) -> Iterator[Extent]:
        """Describe ``count`` clusters from entry ``first`` on, the first at guest ``offset``."""
        units = SUBCLUSTERS if self.geometry.extended_l2 else 1
        if count * units <= _BULK_ENTRIES:
            one_by_one = self._extended if self.geometry.extended_l2 else self._standard
            yield from one_by_one(table, first, count, offset)
            return
        bulk = self._extended_bulk if self.geometry.extended_l2 else self._standard_bulk
        step = _BULK_STEP // units
        for start in range(0, count, step):
            here = offset + (start << self.geometry.cluster_bits)
            yield from bulk(table, first + start, min(step, count - start), here)

    def unmapped(self, offset: int, length: int) -> Extent:
        """The extent of a range that has no L2 table."""
        return Extent(offset, length, Kind.UNALLOCATED)

    # One entry at a time

    def _standard(self, table: array[int], first: int, count: int, offset: int) -> Iterator[Extent]:
        cluster_size = self.geometry.cluster_size
        for entry in table[first : first + count]:
            if entry & COMPRESSED:
                yield self._compressed(entry, offset)
            else:
                host = entry & L2_OFFSET_MASK
                if host & (cluster_size - 1):
                    raise unaligned(host)
                if entry & ZERO_FLAG:
                    if self.version < 3:
                        raise zero_in_version_2()
                    # At offset 0 nothing is kept for it, not even in an external data file.
                    yield self._plain(Kind.ZERO, offset, cluster_size, host or None)
                elif self._has_host(entry):
                    yield Extent(offset, cluster_size, Kind.DATA, self.data, host)
                else:
                    yield Extent(offset, cluster_size, Kind.UNALLOCATED)
            offset += cluster_size

    def _extended(self, table: array[int], first: int, count: int, offset: int) -> Iterator[Extent]:
        size = self.geometry.subcluster_size
        for index in range(first, first + count):
            entry, bitmap = table[2 * index], table[2 * index + 1]
            if entry & COMPRESSED:
                yield self._compressed(entry, offset)
                offset += self.geometry.cluster_size
                continue
            host = entry & L2_OFFSET_MASK
            if host & (self.geometry.cluster_size - 1):
                raise unaligned(host)
            hosted = self._has_host(entry)
            allocated, zero = bitmap & 0xFFFFFFFF, bitmap >> 32
            if allocated & zero or (allocated and not hosted):
                raise CorruptImage("An extended L2 entry's subcluster bitmap is invalid", host)
            for subcluster in range(SUBCLUSTERS):
                here = host + subcluster * size
                if zero >> subcluster & 1:
                    yield self._plain(Kind.ZERO, offset, size, here if hosted else None)
                elif allocated >> subcluster & 1:
                    yield Extent(offset, size, Kind.DATA, self.data, here)
                else:
                    yield self._plain(Kind.UNALLOCATED, offset, size, here if hosted else None)
                offset += size

    def _has_host(self, entry: int) -> bool:
        # Offset 0 is the header's, except in an external data file, where COPIED tells.
        return bool(entry & L2_OFFSET_MASK) or (self.external_data and bool(entry & COPIED))

    def _plain(self, kind: Kind, offset: int, length: int, host: int | None) -> Extent:
        return Extent(offset, length, kind, None if host is None else self.data, host)

    def _compressed(self, entry: int, offset: int) -> Extent:
        if self.external_data:
            raise CorruptImage("A compressed cluster in an image with an external data file")
        host, length = self.geometry.compressed_range(entry)
        return Extent(
            offset,
            self.geometry.cluster_size,
            Kind.COMPRESSED,
            self.file,
            host,
            encoded_length=length,
        )

    # Whole tables at once

    def _standard_bulk(
        self, table: array[int], first: int, count: int, offset: int
    ) -> Iterator[Extent]:
        import numpy as np

        entries = np.frombuffer(table, dtype=np.uint64)[first : first + count]
        compressed = (entries & np.uint64(COMPRESSED)) != 0
        host = entries & np.uint64(L2_OFFSET_MASK)
        self._check_alignment(host, compressed)
        hosted = self._hosted(entries, host)
        kinds = np.where(hosted, np.uint8(_DATA), np.uint8(_UNALLOCATED))
        zero = (entries & np.uint64(ZERO_FLAG)) != 0
        if self.version < 3 and bool(np.any(zero & ~compressed)):
            raise zero_in_version_2()
        kinds[zero] = _ZERO
        hosted &= ~zero | (host != 0)
        kinds[compressed] = _COMPRESSED
        yield from self._runs(entries, kinds, host, hosted, self.geometry.cluster_size, offset)

    def _extended_bulk(
        self, table: array[int], first: int, count: int, offset: int
    ) -> Iterator[Extent]:
        import numpy as np

        pairs = np.frombuffer(table, dtype=np.uint64)[2 * first : 2 * (first + count)]
        entries, bitmaps = pairs[0::2], pairs[1::2]
        compressed = (entries & np.uint64(COMPRESSED)) != 0
        host = entries & np.uint64(L2_OFFSET_MASK)
        self._check_alignment(host, compressed)
        hosted = self._hosted(entries, host)
        allocated, zero = bitmaps & np.uint64(0xFFFFFFFF), bitmaps >> np.uint64(32)
        invalid = ((allocated & zero) != 0) | ((allocated != 0) & ~hosted)
        if bool(np.any(invalid & ~compressed)):
            raise CorruptImage("An extended L2 entry's subcluster bitmap is invalid")

        bits = np.arange(SUBCLUSTERS, dtype=np.uint64)
        size = self.geometry.subcluster_size
        kinds = np.full((count, SUBCLUSTERS), _UNALLOCATED, dtype=np.uint8)
        kinds[(allocated[:, None] >> bits & np.uint64(1)) != 0] = _DATA
        kinds[(zero[:, None] >> bits & np.uint64(1)) != 0] = _ZERO
        kinds[compressed] = _COMPRESSED
        hosts = host[:, None] + bits * np.uint64(size)
        yield from self._runs(
            np.repeat(entries, SUBCLUSTERS),
            kinds.ravel(),
            hosts.ravel(),
            np.repeat(hosted, SUBCLUSTERS),
            size,
            offset,
        )

    def _hosted(self, entries: NDArray[np.uint64], host: NDArray[np.uint64]) -> NDArray[np.bool_]:
        import numpy as np

        hosted: NDArray[np.bool_] = host != 0
        if self.external_data:
            hosted |= (entries & np.uint64(COPIED)) != 0
        return hosted

    def _check_alignment(self, host: NDArray[np.uint64], compressed: NDArray[np.bool_]) -> None:
        import numpy as np

        wrong = ((host & np.uint64(self.geometry.cluster_size - 1)) != 0) & ~compressed
        if bool(np.any(wrong)):
            raise unaligned(int(host[np.flatnonzero(wrong)[0]]))

    def _runs(
        self,
        entries: NDArray[np.uint64],
        kinds: NDArray[np.uint8],
        host: NDArray[np.uint64],
        hosted: NDArray[np.bool_],
        size: int,
        offset: int,
    ) -> Iterator[Extent]:
        """Join what lies together into extents; each unit of the arrays maps ``size`` bytes."""
        import numpy as np

        joined = kinds[1:] == kinds[:-1]
        joined &= hosted[1:] == hosted[:-1]
        joined &= ~hosted[1:] | (host[1:] - host[:-1] == np.uint64(size))
        per_cluster = self.geometry.cluster_size // size
        encoded = kinds[1:] == _COMPRESSED
        if bool(np.any(encoded)):
            same_cluster = np.arange(1, len(kinds)) % per_cluster != 0
            joined = np.where(encoded, same_cluster & (kinds[:-1] == _COMPRESSED), joined)
        starts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        lengths: list[Any] = np.diff(starts, append=len(kinds)).tolist()
        rows = zip(
            kinds[starts].tolist(),
            hosted[starts].tolist(),
            host[starts].tolist(),
            entries[starts].tolist(),
            lengths,
            strict=True,
        )
        for kind, is_hosted, host_offset, entry, units in rows:
            length = units * size
            if kind == _COMPRESSED:
                yield self._compressed(entry, offset)
            elif is_hosted:
                yield Extent(offset, length, _KINDS[kind], self.data, host_offset)
            else:
                yield Extent(offset, length, _KINDS[kind])
            offset += length


def unaligned(host: int) -> CorruptImage:
    """The error for a host offset that is not a multiple of the cluster size."""
    return CorruptImage("A data cluster is not aligned to the cluster size", host)


def zero_in_version_2() -> CorruptImage:
    """The error for a zero cluster in an image whose version has none."""
    return CorruptImage("A zero cluster in an image of version 2")
