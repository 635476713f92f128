"""The qcow2 driver: opens an image and answers what is mapped where."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from imgtool.description import SnapshotInfo
from imgtool.device import BlockDevice, Limits, StoredBitmap
from imgtool.errors import CorruptImage
from imgtool.extent import Extent
from imgtool.formats.qcow2 import bitmaps, snapshots
from imgtool.formats.qcow2.bitmaps import Bitmap, read_bitmaps
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.l2 import L2Reader
from imgtool.formats.qcow2.schema import (
    COPIED,
    L2_OFFSET_MASK,
    BitmapFlag,
    Compatible,
    Compression,
    Crypt,
)
from imgtool.formats.qcow2.snapshots import Snapshot, read_snapshots
from imgtool.formats.qcow2.tables import L2Tables
from imgtool.mapped import DecodedClusters, MappedDevice
from imgtool.storage.base import Storage
from imgtool.units import align_down, align_up

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Guests see whole sectors.
SECTOR = 512

#: Decoded clusters that one open disk keeps, for readers that take small steps.
_DECODED_BYTES = 4 << 20

#: What the L2 entry of a cluster may have set that is nothing but data.
_PLAIN_ENTRY = COPIED | L2_OFFSET_MASK


class Qcow2Device(MappedDevice):
    """A qcow2 disk: the active one, or that of an internal snapshot.

    ``storage`` is the image's own file, ``data`` the file in which data clusters lie: the same,
    or the external data file (None if the image was opened for its metadata alone). ``contents``
    is what data clusters are read from and written to: ``data``, or that decrypted.
    """

    format = "qcow2"

    def __init__(
        self,
        storage: Storage,
        header: Header,
        l1: array[int],
        *,
        data: Storage | None,
        contents: Storage | None = None,
        backing: BlockDevice | None,
        snapshot: Snapshot | None = None,
        follow: bool = True,
    ) -> None:
        self.storage = storage
        self.header = header
        self.data = data
        encrypted = header.crypt_method is not Crypt.NONE
        self.contents = contents if encrypted else data
        self.snapshot = snapshot
        self.name = storage.name
        self._backing = backing
        size = header.size
        if snapshot is not None and snapshot.disk_size is not None:
            size = snapshot.disk_size
        # QEMU counts in whole sectors, so a guest does not see the rest of a broken one.
        self._size = align_down(size, SECTOR)
        self._tables = L2Tables(storage, header.geometry, l1)
        self._l2 = L2Reader(
            header.geometry,
            storage,
            self.contents if self.contents is not None else storage,
            version=header.version,
            external_data=header.has_data_file,
        )
        self._decoded = DecodedClusters(_DECODED_BYTES)
        if encrypted and contents is None:
            self._incomplete = "password"
        elif not follow:
            self._incomplete = _missing(header, data)
        # What never changes of the geometry, for small reads: a property takes as long as a sum.
        self._cluster_bits = header.geometry.cluster_bits
        self._l2_entries = header.geometry.l2_entries
        self._within_cluster = header.geometry.cluster_size - 1
        # Plain entries of whole clusters say where the bytes lie without another look.
        self._plain_entries = (
            self._incomplete is None
            and not header.geometry.extended_l2
            and header.crypt_method is not Crypt.AES
        )

    @property
    def size(self) -> int:
        return self._size

    @property
    def limits(self) -> Limits:
        return Limits(alignment=self.header.geometry.subcluster_size)

    @property
    def children(self) -> Mapping[str, BlockDevice | Storage]:
        found: dict[str, BlockDevice | Storage] = {"file": self.storage}
        if self.data is not None and self.data is not self.storage:
            found["data-file"] = self.data
        if self._backing is not None:
            found["backing"] = self._backing
        return found

    @cached_property
    def snapshots(self) -> list[Snapshot]:
        """The internal snapshots, in the order of their table."""
        found = read_snapshots(self.storage, self.header)
        self.storage.account.charge(snapshots.memory_of(found), "The snapshot table")
        return found

    @cached_property
    def bitmaps(self) -> list[Bitmap]:
        """The persistent bitmaps, in the order of their directory."""
        found = read_bitmaps(self.storage, self.header)
        self.storage.account.charge(bitmaps.memory_of(found), "The bitmap directory")
        return found

    @property
    def stored_bitmaps(self) -> list[StoredBitmap] | None:
        if self.header.version < 3:
            return None
        return [
            StoredBitmap(
                bitmap.name,
                bitmap.granularity,
                enabled=bool(bitmap.flags & BitmapFlag.AUTO),
                inconsistent=bool(bitmap.flags & BitmapFlag.IN_USE),
            )
            for bitmap in self.bitmaps
        ]

    def bitmap_ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """The dirty ranges of the bitmap called ``name``, as ``(offset, length)`` in bytes.

        Raises :class:`BadOption` if there is none, and :class:`ImageError` if it was not stored
        properly, so that nobody can rely on it.
        """
        from imgtool.formats.qcow2.dirty_bits import load_named

        return load_named(self.storage, self.header, name, self.header.size).ranges()

    @property
    def stored_snapshots(self) -> list[SnapshotInfo]:
        return [
            SnapshotInfo(
                id=snapshot.id,
                name=snapshot.name,
                vm_state_size=snapshot.vm_state_size,
                date_sec=snapshot.date_sec,
                date_nsec=snapshot.date_nsec,
                vm_clock_nsec=snapshot.vm_clock_nsec,
                disk_size=snapshot.disk_size,
                icount=snapshot.icount,
            )
            for snapshot in self.snapshots
        ]

    @property
    def creation_options(self) -> dict[str, object]:
        geometry = self.header.geometry
        options: dict[str, object] = {
            "cluster_size": geometry.cluster_size,
            "compat": "0.10" if self.header.version < 3 else "1.1",
        }
        if self.header.version >= 3:
            options["refcount_bits"] = geometry.refcount_bits
            options["extended_l2"] = geometry.extended_l2
            options["compression_type"] = self.header.compression.name.lower()
            lazy = self.header.compatible & Compatible.LAZY_REFCOUNTS
            options["lazy_refcounts"] = bool(lazy)
        return options

    @property
    def _cluster_size(self) -> int:
        return self.header.geometry.cluster_size

    def _map(
        self, offset: int, length: int, *, whole: bool = False, places: bool = True
    ) -> Iterator[Extent]:
        geometry = self.header.geometry
        coverage = geometry.l2_coverage
        end = offset + length
        last = (end - 1) // coverage + 1
        while offset < end:
            # Absent tables are skipped together: what is not allocated costs next to nothing.
            l1_index = self._tables.next_mapped(offset // coverage, last)
            start = max(offset, l1_index * coverage)
            if start > offset:
                yield self._l2.unmapped(offset, min(end, start) - offset)
            if start < end:
                stop = min(end, (l1_index + 1) * coverage)
                yield from self._map_clusters(l1_index, start, stop, whole, places)
                start = stop
            offset = start

    def _map_clusters(
        self, l1_index: int, offset: int, end: int, whole: bool, places: bool
    ) -> Iterator[Extent]:
        """Map ``[offset, end)``, which the L2 table ``l1_index`` covers."""
        bits = self.header.geometry.cluster_bits
        base = l1_index * self.header.geometry.l2_coverage
        first = (offset - base) >> bits
        count = ((end - base - 1) >> bits) + 1 - first
        try:
            # Who asks for the whole mapping looks at every table once.
            once = whole and count == self.header.geometry.l2_entries
            table = self._tables.find(l1_index, keep=not once)
            told = 0
            if table is None:
                found: Iterable[Extent] = (self._l2.unmapped(offset, end - offset),)
            else:
                here = base + (first << bits)
                found = self._l2.extents(table, first, count, here, whole=whole, places=places)
                told = count * self.header.geometry.l2_entry_size >> 10
            for extent in found:
                told += 1
                if extent.offset >= offset and extent.end <= end:
                    yield extent
                elif extent.offset < end and extent.end > offset:
                    yield extent.clip(offset, end)
            if whole:
                self.storage.account.spend(told)
        except CorruptImage as error:
            raise error.in_file(self.name) from None

    def _lies_at(self, offset: int, length: int) -> tuple[Storage, int] | None:
        mask, entries = self._within_cluster, self._l2_entries
        l1_index, index = divmod(offset >> self._cluster_bits, entries)
        # The L1 table of a snapshot may be shorter than its disk.
        if not self._plain_entries or l1_index >= len(self._tables.l1):
            return None
        try:
            table = self._tables.get(l1_index)
        except CorruptImage:
            return None  # it is told of where the mapping is looked at
        if table is None:
            return None
        entry = table[index]
        host = entry & L2_OFFSET_MASK
        within = offset & mask
        if not host or entry & ~_PLAIN_ENTRY or host & mask or self.contents is None:
            return None
        last = index + ((within + length - 1) >> self._cluster_bits)
        if last > index:
            if last >= entries:
                return None
            for following in table[index + 1 : last + 1]:
                entry += mask + 1
                if following != entry:
                    return None
        return self.contents, host + within

    def _decode(self, encoded: Sequence[tuple[Extent, memoryview]]) -> Sequence[ReadableBuffer]:
        from imgtool import codecs

        if self.header.compression is not Compression.ZSTD:
            return [self._decode_one(extent, data, codecs.inflate) for extent, data in encoded]
        if len(encoded) > 1:
            together = codecs.zstd_decompress_all([data for _, data in encoded], self._cluster_size)
            if together is not None:
                return together
        return [self._decode_one(extent, data, codecs.zstd_decompress) for extent, data in encoded]

    def _decode_one(
        self,
        extent: Extent,
        encoded: memoryview,
        decompress: Callable[[memoryview, int], bytes | bytearray],
    ) -> bytes | bytearray:
        offset = extent.host_offset
        assert offset is not None
        try:
            cluster = decompress(encoded, self._cluster_size)
        except CorruptImage as error:
            past = offset + extent.encoded_length > align_up(self.storage.size(), SECTOR)
            what = "A compressed cluster lies past the end of the file" if past else error.what
            raise CorruptImage(what, offset, filename=self.name) from error
        if len(cluster) != self._cluster_size:
            raise CorruptImage(
                "A compressed cluster does not fill a cluster", offset, filename=self.name
            )
        return cluster

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        extents = super()._extents(offset, length)
        if self.header.crypt_method is Crypt.NONE:
            return extents
        # The host file has the bytes, but not as they are.
        return (
            extent if extent.depth else extent._replace(storage=None, host_offset=None)
            for extent in extents
        )

    @cached_property
    def _data_has_holes(self) -> bool:
        from imgtool.formats.qcow2.preallocation import metadata_only

        # In an encrypted file what a hole holds is not zeros.
        encrypted = self.header.crypt_method is not Crypt.NONE
        return not encrypted and metadata_only(self)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for child in self.children.values():
                stack.callback(child.close)


def _missing(header: Header, data: Storage | None) -> str | None:
    """What a disk opened without following its names lacks for reading."""
    if header.has_data_file and data is None:
        return "external data file"
    return "backing file" if header.backing_file is not None else None
