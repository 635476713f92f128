"""MappedDevice: guest I/O for every format that maps guest clusters to host clusters.

A driver says what is mapped where (:meth:`MappedDevice._map`) and how an encoded cluster is
decoded; the reading itself is done here, once for all formats.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind

_ZEROS = memoryview(bytes(1 << 20))


def fill_zeros(view: memoryview) -> None:
    """Set every byte of ``view`` to zero."""
    length = len(view)
    for start in range(0, length, len(_ZEROS)):
        step = min(len(_ZEROS), length - start)
        view[start : start + step] = _ZEROS[:step]


class MappedDevice(BlockDevice):
    """A disk whose guest clusters are mapped one by one.

    ``_backing`` is what unallocated ranges are read from; None stands for zeros. A device that was
    opened without the files it names has ``_incomplete`` set, to what is missing.
    """

    _backing: BlockDevice | None = None
    _incomplete: str | None = None

    @property
    def backing(self) -> BlockDevice | None:
        return self._backing

    @abc.abstractmethod
    def _map(self, offset: int, length: int) -> Iterator[Extent]:
        """Cover the range with this image's own extents (depth 0), in bulk.

        COMPRESSED extents are single guest clusters, with the host range of the encoded bytes.
        """

    @abc.abstractmethod
    def _decode(self, extent: Extent) -> bytes:
        """Return the guest bytes of the COMPRESSED ``extent``, a whole guest cluster."""

    @property
    @abc.abstractmethod
    def _cluster_size(self) -> int:
        """The granularity of encoding in bytes: a power of two."""

    @property
    def _data_has_holes(self) -> bool:
        """Whether host clusters mapped as data may be holes in the host file."""
        return False

    def _read(self, offset: int, view: memoryview) -> None:
        if self._incomplete is not None:
            raise ImageError(
                f"It was opened without its {self._incomplete}, for its metadata only",
                filename=self.name,
            )
        done = 0
        for extent in self._map(offset, len(view)):
            part = view[done : done + extent.length]
            done += extent.length
            if extent.kind is Kind.DATA:
                self._read_data(extent, part)
            elif extent.kind is Kind.ZERO:
                fill_zeros(part)
            elif extent.kind is Kind.COMPRESSED:
                skip = extent.offset & (self._cluster_size - 1)
                part[:] = memoryview(self._decode(extent))[skip : skip + extent.length]
            else:
                self._read_backing(extent.offset, part)

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
            fill_zeros(view[inside:])

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        backing = self._backing
        holes = self._data_has_holes
        for extent in self._map(offset, length):
            if extent.kind is Kind.UNALLOCATED and backing is not None:
                inside = max(0, min(extent.end, backing.size) - extent.offset)
                if inside:
                    for below in backing._extents(extent.offset, inside):
                        yield below._replace(depth=below.depth + 1)
                if inside < extent.length:
                    yield extent.clip(extent.offset + inside, extent.end)
            elif extent.kind is Kind.COMPRESSED:
                yield extent._replace(storage=None, host_offset=None, encoded_length=0)
            elif extent.kind is Kind.DATA and holes:
                yield from _split_at_holes(extent)
            else:
                yield extent


def _split_at_holes(extent: Extent) -> Iterator[Extent]:
    assert extent.storage is not None
    assert extent.host_offset is not None
    for found in extent.storage.ranges(extent.host_offset, extent.length):
        offset = extent.offset + found.offset - extent.host_offset
        part = extent.clip(offset, offset + found.length)
        yield part if found.is_data else part._replace(hole=True)
