"""What L2 entries mean: cluster and subcluster types, one at a time and in bulk.

Source: the specification's sections "Cluster mapping", "Standard Cluster Descriptor",
"Compressed Clusters Descriptor" and "Extended L2 Entries".
"""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from imgtool.errors import CorruptImage
from imgtool.extent import Extent, Kind
from imgtool.formats.qcow2.bulk import looped, numpy_pays
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

#: Up to here a loop over entries beats numpy.
_BULK_ENTRIES = 256
#: Entries that numpy is given at a time: a table may have a quarter of a million.
_BULK_STEP = 1 << 16
#: How many entries, each the one before it moved on by a cluster, take as long as a run of them.
_RUN_ENTRIES = 32

_ALL = (1 << SUBCLUSTERS) - 1
#: Bitmaps of clusters whose subclusters are all of one kind.
_UNIFORM = {0: Kind.UNALLOCATED, _ALL: Kind.DATA, _ALL << SUBCLUSTERS: Kind.ZERO}

_KINDS = (Kind.UNALLOCATED, Kind.ZERO, Kind.DATA, Kind.COMPRESSED)
_UNALLOCATED, _ZERO, _DATA, _COMPRESSED = range(4)


@functools.lru_cache(maxsize=4096)
def _subcluster_runs(bitmap: int) -> tuple[tuple[Kind, int, int], ...]:
    """What a subcluster bitmap says: kind, first subcluster and number of subclusters, in order."""
    kinds = [
        Kind.ZERO
        if bitmap >> SUBCLUSTERS + position & 1
        else Kind.DATA
        if bitmap >> position & 1
        else Kind.UNALLOCATED
        for position in range(SUBCLUSTERS)
    ]
    runs, first = [], 0
    for kind, group in itertools.groupby(kinds):
        count = len(list(group))
        runs.append((kind, first, count))
        first += count
    return tuple(runs)


class L2Reader(NamedTuple):
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

    def extents(
        self,
        table: array[int],
        first: int,
        count: int,
        offset: int,
        *,
        whole: bool = False,
        places: bool = True,
    ) -> Iterator[Extent]:
        """Describe ``count`` clusters from entry ``first`` on, the first at guest ``offset``.

        With ``whole`` compressed clusters may come as runs, which have no host range; without
        ``places`` all others may, too.
        """
        if self.geometry.extended_l2:
            yield from self._extended(table, first, count, offset)
        elif count <= _BULK_ENTRIES or not numpy_pays(count):
            yield from self._standard(table, first, count, offset, whole)
        else:
            for start in range(0, count, _BULK_STEP):
                here = offset + (start << self.geometry.cluster_bits)
                step = min(_BULK_STEP, count - start)
                yield from self._bulk(table, first + start, step, here, whole, places)

    def unmapped(self, offset: int, length: int) -> Extent:
        """The extent of a range that has no L2 table."""
        return Extent(offset, length, Kind.UNALLOCATED)

    # One entry at a time

    def _standard(
        self, table: array[int], first: int, count: int, offset: int, whole: bool
    ) -> Iterator[Extent]:
        cluster_size = self.geometry.cluster_size
        entries = table[first : first + count]
        begin, following, step, runs = 0, -1, 0, 0
        for index, entry in enumerate(entries):
            if entry == following:
                following += step
                continue
            if whole and entry & COMPRESSED and index and entries[begin] & COMPRESSED:
                continue
            if index:
                runs += 1
                yield self._run(entries[begin], offset, (index - begin) * cluster_size)
                offset += (index - begin) * cluster_size
            begin = index
            step = cluster_size if self._has_host(entry) else 0
            following = -1 if entry & COMPRESSED else entry + step
        yield self._run(entries[begin], offset, (count - begin) * cluster_size)
        looped(runs * _RUN_ENTRIES)

    def _run(self, entry: int, offset: int, length: int) -> Extent:
        """The extent of clusters that lie one after the other, from that of ``entry`` on."""
        if entry & COMPRESSED:
            return self._compressed(entry, offset, length)
        host = self._aligned(entry)
        if entry & ZERO_FLAG:
            if self.version < 3:
                raise zero_in_version_2()
            kind = Kind.ZERO
        else:
            kind = Kind.DATA if self._has_host(entry) else Kind.UNALLOCATED
        return self._plain(kind, offset, length, host if self._has_host(entry) else None)

    def _extended(self, table: array[int], first: int, count: int, offset: int) -> Iterator[Extent]:
        cluster_size = self.geometry.cluster_size
        pairs = table[2 * first : 2 * (first + count)]
        begin, following, step, same = 0, -1, 0, -1
        for index in range(count):
            entry, bitmap = pairs[2 * index], pairs[2 * index + 1]
            if entry == following and bitmap == same:
                following += step
                continue
            if index:
                length = (index - begin) * cluster_size
                yield from self._pair(pairs[2 * begin], pairs[2 * begin + 1], offset, length)
                offset += length
            begin, same = index, bitmap
            step = cluster_size if self._has_host(entry) else 0
            following = -1 if entry & COMPRESSED or bitmap not in _UNIFORM else entry + step
        length = (count - begin) * cluster_size
        yield from self._pair(pairs[2 * begin], pairs[2 * begin + 1], offset, length)

    def _pair(self, entry: int, bitmap: int, offset: int, length: int) -> Iterator[Extent]:
        """The extents of one cluster, or of several of the same kind that lie one after another."""
        if entry & COMPRESSED:
            yield self._compressed(entry, offset)
            return
        host, hosted = self._aligned(entry), self._has_host(entry)
        allocated, zero = bitmap & _ALL, bitmap >> SUBCLUSTERS
        if allocated & zero or (allocated and not hosted):
            raise CorruptImage("An extended L2 entry's subcluster bitmap is invalid", host)
        if bitmap in _UNIFORM:
            yield self._plain(_UNIFORM[bitmap], offset, length, host if hosted else None)
            return
        size = self.geometry.subcluster_size
        for kind, first, count in _subcluster_runs(bitmap):
            start = first * size
            yield self._plain(kind, offset + start, count * size, host + start if hosted else None)

    def _aligned(self, entry: int) -> int:
        host = entry & L2_OFFSET_MASK
        if host & (self.geometry.cluster_size - 1):
            raise unaligned(host)
        return host

    def _has_host(self, entry: int) -> bool:
        # Offset 0 is the header's, except in an external data file, where COPIED tells, and there
        # too nothing is kept at offset 0 for zeros.
        return bool(entry & L2_OFFSET_MASK) or (
            self.external_data and entry & (COPIED | ZERO_FLAG) == COPIED
        )

    def _plain(self, kind: Kind, offset: int, length: int, host: int | None) -> Extent:
        return Extent(offset, length, kind, None if host is None else self.data, host)

    def _compressed(self, entry: int, offset: int, length: int | None = None) -> Extent:
        """The extent of a compressed cluster, or of the run of ``length`` bytes that it begins."""
        if self.external_data:
            raise CorruptImage("A compressed cluster in an image with an external data file")
        if length is not None and length != self.geometry.cluster_size:
            return Extent(offset, length, Kind.COMPRESSED)
        host, encoded = self.geometry.compressed_range(entry)
        size = self.geometry.cluster_size
        return Extent(offset, size, Kind.COMPRESSED, self.file, host, 0, False, encoded)

    # Whole tables at once

    def _bulk(
        self, table: array[int], first: int, count: int, offset: int, whole: bool, places: bool
    ) -> Iterator[Extent]:
        import numpy as np

        entries = np.frombuffer(table, dtype=np.uint64)[first : first + count]
        if self._is_one_run(entries):
            yield self._run(int(entries[0]), offset, count << self.geometry.cluster_bits)
            return
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

        joined = kinds[1:] == kinds[:-1]
        if places:
            joined &= hosted[1:] == hosted[:-1]
            joined &= ~hosted[1:] | (host[1:] - host[:-1] == np.uint64(self.geometry.cluster_size))
        joined &= ~compressed[1:]
        if whole:
            joined |= compressed[1:] & compressed[:-1]
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
        for kind, is_hosted, host_offset, entry, clusters in rows:
            length = clusters * self.geometry.cluster_size
            if kind == _COMPRESSED:
                yield self._compressed(entry, offset, length)
            elif is_hosted and places:
                yield Extent(offset, length, _KINDS[kind], self.data, host_offset)
            else:
                yield Extent(offset, length, _KINDS[kind])
            offset += length

    def _is_one_run(self, entries: NDArray[np.uint64]) -> bool:
        """Whether all clusters lie one after the other, or none lies anywhere: the usual cases."""
        first = int(entries[0])
        if first & COMPRESSED:
            return False
        if not self._has_host(first):
            return bool((entries == entries[0]).all())
        # The last entry tells most of those that are not.
        size = self.geometry.cluster_size
        if int(entries[-1]) != first + (len(entries) - 1) * size:
            return False
        return bool((entries == _ramp(size)[: len(entries)] + entries[0]).all())

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


@functools.lru_cache(maxsize=4)
def _ramp(step: int) -> NDArray[np.uint64]:
    import numpy as np

    return np.arange(0, _BULK_STEP * step, step, dtype=np.uint64)


def unaligned(host: int) -> CorruptImage:
    """The error for a host offset that is not a multiple of the cluster size."""
    return CorruptImage("A data cluster is not aligned to the cluster size", host)


def zero_in_version_2() -> CorruptImage:
    """The error for a zero cluster in an image whose version has none."""
    return CorruptImage("A zero cluster in an image of version 2")
