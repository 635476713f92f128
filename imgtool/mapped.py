"""MappedDevice: guest I/O for every format that maps guest clusters to host clusters.

A driver says what is mapped where (:meth:`MappedDevice._map`) and how an encoded cluster is
decoded; the reading itself is done here, once for all formats.
"""

from __future__ import annotations

import abc
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from imgtool import zeros
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Encoded bytes that are read in one go, and what may lie between two clusters' without need.
_ENCODED_BYTES = 4 << 20
_ENCODED_GAP = 64 << 10
#: Decoded bytes that are made in one go: they should still be in the cache when they are copied.
_DECODED_TOGETHER = 1 << 20


class DecodedClusters:
    """The decoded clusters that were used last, ``capacity`` bytes of them; for any thread."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._clusters: OrderedDict[int, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: int) -> bytes | None:
        """The cluster kept under ``key``."""
        with self._lock:
            cluster = self._clusters.get(key)
            if cluster is not None:
                self._clusters.move_to_end(key)
            return cluster

    def keep(self, key: int, cluster: bytes) -> None:
        """Keep a cluster, and let go of those that have not been used for longest."""
        with self._lock:
            if key not in self._clusters:
                self._clusters[key] = cluster
                self._bytes += len(cluster)
            while self._bytes > self._capacity and len(self._clusters) > 1:
                self._bytes -= len(self._clusters.popitem(last=False)[1])


class MappedDevice(BlockDevice):
    """A disk whose guest clusters are mapped one by one.

    ``_backing`` is what unallocated ranges are read from; None stands for zeros. A device that was
    opened without the files it names has ``_incomplete`` set, to what is missing.
    """

    _backing: BlockDevice | None = None
    _incomplete: str | None = None
    #: Decoded clusters that were asked for in part, by the host offset of their encoded bytes;
    #: None if none are kept.
    _decoded: DecodedClusters | None = None

    @property
    def backing(self) -> BlockDevice | None:
        return self._backing

    @abc.abstractmethod
    def _map(
        self, offset: int, length: int, *, whole: bool = False, places: bool = True
    ) -> Iterator[Extent]:
        """Cover the range with this image's own extents (depth 0), in bulk.

        COMPRESSED extents are single guest clusters, with the host range of the encoded bytes. For
        those who only ask what is mapped, ``whole`` allows runs of them, without a host range; and
        for those who do not ask where, no extent needs one without ``places``.
        """

    @abc.abstractmethod
    def _decode(self, encoded: Sequence[tuple[Extent, memoryview]]) -> Sequence[ReadableBuffer]:
        """Return the guest bytes, a whole guest cluster, of each COMPRESSED extent.

        With each extent comes what lies in its host range, with zeros past the end of the file.
        """

    def _lies_at(self, offset: int, length: int) -> tuple[Storage, int] | None:
        """Where the bytes of a range lie as they are, if that is quickly told and in one piece."""
        return None

    @property
    @abc.abstractmethod
    def _cluster_size(self) -> int:
        """The granularity of encoding in bytes: a power of two."""

    @property
    def _data_has_holes(self) -> bool:
        """Whether host clusters mapped as data may be holes in the host file."""
        return False

    def _read_bytes(self, offset: int, length: int) -> bytes:
        place = self._lies_at(offset, length)
        if place is None:
            return super()._read_bytes(offset, length)
        storage, host_offset = place
        return storage.read_at(host_offset, length)

    def _read(self, offset: int, view: memoryview) -> None:
        place = self._lies_at(offset, len(view))
        if place is not None:
            storage, host_offset = place
            storage.read_into(host_offset, view)
            return
        if self._incomplete is not None:
            raise ImageError(
                f"It was opened without its {self._incomplete}, for its metadata only",
                filename=self.name,
            )
        done = 0
        encoded: list[tuple[Extent, memoryview]] = []
        for extent in self._map(offset, len(view)):
            part = view[done : done + extent.length]
            done += extent.length
            if extent.kind is Kind.DATA:
                self._read_data(extent, part)
            elif extent.kind is Kind.ZERO:
                zeros.fill(part)
            elif extent.kind is Kind.COMPRESSED:
                encoded.append((extent, part))
            else:
                self._read_backing(extent.offset, part)
        if encoded:
            self._read_encoded(encoded)

    def _read_encoded(self, pieces: list[tuple[Extent, memoryview]]) -> None:
        """Read and decode COMPRESSED extents, those that lie close together in one go."""
        together: list[tuple[Extent, memoryview]] = []
        start = end = 0
        for piece in pieces:
            extent = piece[0]
            assert extent.host_offset is not None
            low, high = extent.host_offset, extent.host_offset + extent.encoded_length
            if together and start <= low <= end + _ENCODED_GAP and high - start <= _ENCODED_BYTES:
                end = max(end, high)
            else:
                self._decode_together(together, start, end)
                together = []
                start, end = low, high
            together.append(piece)
        self._decode_together(together, start, end)

    def _decode_together(
        self, pieces: list[tuple[Extent, memoryview]], start: int, end: int
    ) -> None:
        """Decode extents whose encoded bytes lie between ``start`` and ``end`` of the host file."""
        size, kept = self._cluster_size, self._decoded
        wanted: list[tuple[Extent, memoryview]] = []
        for extent, part in pieces:
            assert extent.host_offset is not None
            cluster = kept.get(extent.host_offset) if kept is not None else None
            if cluster is None:
                wanted.append((extent, part))
            else:
                skip = extent.offset & (size - 1)
                part[:] = memoryview(cluster)[skip : skip + len(part)]
        if not wanted:
            return
        storage = wanted[0][0].storage
        assert storage is not None
        encoded = memoryview(storage.read_at(start, end - start))
        step = max(1, _DECODED_TOGETHER // size)
        for first in range(0, len(wanted), step):
            self._decode_into(wanted[first : first + step], encoded, start)

    def _decode_into(
        self, pieces: list[tuple[Extent, memoryview]], encoded: memoryview, start: int
    ) -> None:
        """Decode extents of whose host file ``encoded`` holds what lies from ``start`` on."""
        size = self._cluster_size
        found = []
        for extent, _ in pieces:
            assert extent.host_offset is not None
            first = extent.host_offset - start
            found.append((extent, encoded[first : first + extent.encoded_length]))
        for (extent, part), cluster in zip(pieces, self._decode(found), strict=True):
            if len(part) == size:
                part[:] = cluster
                continue
            whole = bytes(cluster)
            skip = extent.offset & (size - 1)
            part[:] = memoryview(whole)[skip : skip + len(part)]
            if self._decoded is not None:
                # A part was asked for, so the next request is likely for another part.
                assert extent.host_offset is not None
                self._decoded.keep(extent.host_offset, whole)

    def _read_data(self, extent: Extent, view: memoryview) -> None:
        """Read a DATA extent of this image, whole."""
        assert extent.storage is not None
        assert extent.host_offset is not None
        extent.storage.read_into(extent.host_offset, view)

    def _read_backing(self, offset: int, view: memoryview) -> None:
        """Read what this image leaves to its backing image, which may be shorter than it is."""
        backing = self._backing
        inside = 0 if backing is None else max(0, min(len(view), backing.size - offset))
        if inside:
            assert backing is not None
            backing._read(offset, view[:inside])
        if inside < len(view):
            zeros.fill(view[inside:])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._through_chain(offset, length, places=True)

    def _kinds(self, offset: int, length: int) -> Iterator[Extent]:
        return self._through_chain(offset, length, places=False)

    def _through_chain(self, offset: int, length: int, *, places: bool) -> Iterator[Extent]:
        backing = self._backing
        holes = self._data_has_holes
        for extent in self._map(offset, length, whole=True, places=places or holes):
            if extent.kind is Kind.UNALLOCATED and backing is not None:
                inside = max(0, min(extent.end, backing.size) - extent.offset)
                if inside:
                    tell = backing._extents if places else backing._kinds
                    for below in tell(extent.offset, inside):
                        yield below._replace(depth=below.depth + 1)
                if inside < extent.length:
                    yield extent.clip(extent.offset + inside, extent.end)
            elif extent.kind is Kind.COMPRESSED:
                yield extent._replace(storage=None, host_offset=None, encoded_length=0)
            elif extent.kind is Kind.DATA and holes:
                yield from _split_at_holes(extent)
            elif places or extent.storage is None:
                yield extent
            else:
                # Without it neighbours are told of together.
                yield extent._replace(storage=None, host_offset=None)


def _split_at_holes(extent: Extent) -> Iterator[Extent]:
    assert extent.storage is not None
    assert extent.host_offset is not None
    for found in extent.storage.ranges(extent.host_offset, extent.length):
        extent.storage.account.spend(1)
        offset = extent.offset + found.offset - extent.host_offset
        part = extent.clip(offset, offset + found.length)
        yield part if found.is_data else part._replace(hole=True)
