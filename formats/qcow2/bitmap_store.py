"""Persistent bitmaps of a writable image: kept true while it is written to, changed and stored.

Bitmap data, tables and directory are always written to fresh clusters and switched by the header,
so each state on disk is a whole one. While a bitmap follows writes in memory, its directory entry
says IN_USE: if we never come to store it, everybody sees that it cannot be trusted. Source: the
specification's section "Bitmaps".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

from imgtool.device import BlockDevice
from imgtool.errors import BadOption, CorruptImage, ImageError, ReadOnly
from imgtool.format import Bitmaps
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.bitmaps import (
    DIRTY_TRACKING,
    MAX_GRANULARITY_BITS,
    MAX_MEMORY,
    MAX_NAME,
    MIN_GRANULARITY_BITS,
    Bitmap,
    read_bitmaps,
)
from imgtool.formats.qcow2.dirty_bits import (
    DirtyBits,
    check_memory,
    inconsistent,
    load_bits,
    not_found,
)
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import MAX_BITMAPS, os_bytes
from imgtool.formats.qcow2.schema import BITMAP_OFFSET_MASK, Autoclear, BitmapFlag, ExtensionType
from imgtool.formats.qcow2.tables import read_table
from imgtool.schema.fields import big_endian_bytes, build
from imgtool.units import align_up, div_round_up

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2


class Tracked:
    """A bitmap in memory; ``bits`` is None until it is needed."""

    def __init__(self, entry: Bitmap, bits: DirtyBits | None = None) -> None:
        self.entry = entry
        self.bits = bits

    @property
    def inconsistent(self) -> bool:
        return bool(self.entry.flags & BitmapFlag.IN_USE)

    @property
    def enabled(self) -> bool:
        return bool(self.entry.flags & BitmapFlag.AUTO)


class BitmapStore:
    """The bitmaps of one writable image. The caller holds the device's write lock."""

    def __init__(self, device: WritableQcow2) -> None:
        self._device = device
        self._bitmaps = [Tracked(entry) for entry in read_bitmaps(device.storage, device.header)]
        # Those that follow writes, once there has been one.
        self._following: list[DirtyBits] | None = None
        self._changed = False

    def note_write(self, offset: int, length: int) -> None:
        """Mark a range that is about to change, in every bitmap that follows writes."""
        if self._following is None:
            self._following = self._begin([one for one in self._bitmaps if one.enabled])
        for bits in self._following:
            bits.mark(offset, length)

    def _begin(self, wanted: list[Tracked]) -> list[DirtyBits]:
        """Load bitmaps, and have the disk say that what it holds of them is out of date."""
        followed = [one for one in wanted if not one.inconsistent]
        if not followed:
            return []
        size = self._device.size
        memory = sum(div_round_up(size, one.entry.granularity * 8) for one in followed)
        following: list[DirtyBits] = []
        if memory <= MAX_MEMORY:
            following = [self._load(one) for one in followed]
        for one in self._bitmaps:
            if not one.entry.table_offset and one.bits is not None:
                # It is new. QEMU does not open an image with a bitmap that has no table.
                one.entry = self._write_bits(one.entry, one.bits)
        marked = [
            one.entry._replace(flags=one.entry.flags | BitmapFlag.IN_USE)
            if one in followed
            else one.entry
            for one in self._bitmaps
        ]
        self._write_directory(marked)
        if memory > MAX_MEMORY:
            # Too large to follow: they stay marked, so that nobody relies on them.
            for one, entry in zip(self._bitmaps, marked, strict=True):
                one.entry = entry
            return []
        self._changed = True
        return following

    def _load(self, one: Tracked) -> DirtyBits:
        if one.bits is None:
            device = self._device
            self._take_memory(one.entry.name, one.entry.granularity)
            one.bits = load_bits(device.storage, device.header, one.entry, device.size)
        return one.bits

    def _take_memory(self, name: str, granularity: int) -> None:
        """Raise :class:`OverBudget` where the bitmaps in memory leave no room for another."""
        device = self._device
        held = sum(len(other.bits.data) for other in self._bitmaps if other.bits is not None)
        check_memory(device.storage, name, device.size, granularity, held)

    # What people ask for

    def find(self, name: str) -> Tracked:
        """The bitmap called ``name``; raises :class:`BadOption`."""
        for one in self._bitmaps:
            if one.entry.name == name:
                return one
        raise not_found(name)

    def usable(self, name: str) -> Tracked:
        """The same, but refuses a bitmap that was not stored properly."""
        one = self.find(name)
        if one.inconsistent:
            raise inconsistent(name)
        return one

    def add(self, name: str, granularity: int | None = None) -> None:
        """Add an empty bitmap that follows writes; by default a bit stands for a cluster."""
        device = self._device
        if device.header.version < 3:
            raise ImageError("Cannot store dirty bitmaps in qcow2 v2 files")
        if not device.size:
            raise _no_disk()
        encoded = os_bytes(name)
        if not encoded or len(encoded) > MAX_NAME:
            raise BadOption(f"A bitmap's name has 1 to {MAX_NAME} bytes")
        if any(one.entry.name == name for one in self._bitmaps):
            raise BadOption(f"Bitmap already exists: {name}")
        if len(self._bitmaps) >= MAX_BITMAPS:
            raise ImageError("Maximum number of persistent bitmaps is already reached")
        if granularity is None:
            granularity = min(max(4096, device.header.geometry.cluster_size), 65536)
        bits = granularity.bit_length() - 1
        if not MIN_GRANULARITY_BITS <= bits <= MAX_GRANULARITY_BITS or granularity != 1 << bits:
            raise BadOption("Granularity must be power of 2 and at least 512, and at most 2 GiB")
        entry = Bitmap(
            name=name,
            granularity=granularity,
            flags=BitmapFlag.AUTO,
            table_offset=0,
            table_size=0,
            extra_data=b"",
        )
        self._take_memory(name, granularity)
        self._bitmaps.append(Tracked(entry, DirtyBits(device.size, granularity)))
        self._mark_changed()

    def remove(self, name: str) -> None:
        """Remove a bitmap, an inconsistent one too."""
        self._bitmaps.remove(self.find(name))
        self._mark_changed()

    def clear(self, name: str) -> None:
        """Make a bitmap all clean, whatever it holds."""
        one = self.usable(name)
        if one.bits is None:
            self._take_memory(name, one.entry.granularity)
        one.bits = DirtyBits(self._device.size, one.entry.granularity)
        self._mark_changed()

    def enable(self, name: str, enabled: bool) -> None:
        """Let a bitmap follow writes, or stop following them."""
        one = self.usable(name)
        flags = one.entry.flags
        one.entry = one.entry._replace(
            flags=flags | BitmapFlag.AUTO if enabled else flags & ~BitmapFlag.AUTO
        )
        self._mark_changed()

    def merge(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Mark ``(offset, length)`` ranges, in bytes, as dirty."""
        bits = self._load(self.usable(name))
        for offset, length in ranges:
            bits.mark(offset, length)
        self._mark_changed()

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """The dirty ranges of a bitmap as it is now, as ``(offset, length)`` in bytes."""
        return self._load(self.usable(name)).ranges()

    def resize(self, size: int) -> None:
        """Make every bitmap fit the disk's size to be; until :meth:`store` the disk has none."""
        if self._bitmaps and not size:
            raise _no_disk()
        for one in self._bitmaps:
            if one.inconsistent:
                raise ImageError(
                    f"Cannot resize an image with the inconsistent bitmap '{one.entry.name}': "
                    "remove it first"
                )
        self._begin(self._bitmaps)
        for one in self._bitmaps:
            if one.bits is not None:
                one.bits = one.bits.resized(size)
        self._following = None

    def __len__(self) -> int:
        return len(self._bitmaps)

    def _mark_changed(self) -> None:
        self._changed = True
        self._following = None

    # Storing

    def store(self) -> None:
        """Write what has changed. Afterwards the bitmaps on disk are true, and follow nothing."""
        if not self._changed:
            return
        for one in self._bitmaps:
            if one.bits is not None:
                one.entry = self._write_bits(one.entry, one.bits)
        entries = [one.entry for one in self._bitmaps]
        before = read_bitmaps(self._device.storage, self._device.header)
        self._write_directory(entries)
        kept = {entry.table_offset for entry in entries}
        for entry in before:
            if entry.table_offset not in kept:
                self._free_bits(entry)
        self._following = None
        self._changed = False
        self._device.metadata.flush()

    def _write_bits(self, entry: Bitmap, bits: DirtyBits) -> Bitmap:
        device = self._device
        geometry, allocator = device.header.geometry, device.metadata.allocator
        cluster_size = geometry.cluster_size
        table = array("Q")
        for start in range(0, len(bits.data), cluster_size):
            part = bytes(bits.data[start : start + cluster_size])
            if not any(part):
                table.append(0)
                continue
            # Bits are let go of as a guest's clusters are: by what a table says, right or wrong.
            offset, _ = allocator.allocate(1)
            device.storage.write_at(offset, part.ljust(cluster_size, b"\0"))
            table.append(offset)
        clusters = geometry.clusters(len(table) * 8)
        offset = 0
        if clusters:
            offset = allocator.allocate_contiguous(clusters)
            data = big_endian_bytes(table).ljust(clusters << geometry.cluster_bits, b"\0")
            device.storage.write_at(offset, data)
        return entry._replace(table_offset=offset, table_size=len(table))

    def _free_bits(self, entry: Bitmap) -> None:
        device = self._device
        geometry, metadata = device.header.geometry, device.metadata
        if not entry.table_offset:
            return
        try:
            table = read_table(
                device.storage, entry.table_offset, entry.table_size, "A bitmap table"
            )
        except CorruptImage:
            return  # nobody knows what it named: at most that much space is lost
        for value in table:
            if value & BITMAP_OFFSET_MASK:
                metadata.let_go(value & BITMAP_OFFSET_MASK, 1, discard=True)
        metadata.free_later(
            entry.table_offset, geometry.clusters(entry.table_size * 8), discard=True
        )

    def _write_directory(self, entries: list[Bitmap]) -> None:
        """Write a bitmap directory to fresh clusters, switch to it, and let the old one go."""
        device = self._device
        header, metadata = device.header, device.metadata
        geometry = header.geometry
        old = header.bitmaps
        if entries:
            data = b"".join(_directory_entry(entry) for entry in entries)
            clusters = geometry.clusters(len(data))
            offset = metadata.allocator.allocate_contiguous(clusters)
            device.storage.write_at(offset, data.ljust(clusters << geometry.cluster_bits, b"\0"))
            extension = build(
                schema.BITMAPS_EXTENSION,
                {
                    "nb_bitmaps": len(entries),
                    "reserved": 0,
                    "directory_size": len(data),
                    "directory_offset": offset,
                },
            )
            switched = header.with_extension(ExtensionType.BITMAPS, extension)._replace(
                autoclear=header.autoclear | Autoclear.BITMAPS,
            )
        else:
            switched = header.with_extension(ExtensionType.BITMAPS, None)._replace(
                autoclear=header.autoclear & ~Autoclear.BITMAPS,
            )
        switched.build()  # an extension that finds no room in cluster 0 is refused here
        metadata.flush()
        metadata.switch_header(switched)
        if old is not None:
            metadata.free_later(old.directory_offset, geometry.clusters(old.directory_size))


class _StoredBitmaps:
    """The bitmaps of an image that is open for reading alone."""

    def __init__(self, device: Qcow2Device) -> None:
        self._device = device

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        return self._device.bitmap_ranges(name)

    def _refuse(self, *arguments: object) -> NoReturn:
        raise ReadOnly("The disk is open read-only", filename=self._device.name)

    add = remove = clear = enable = merge = _refuse


def bitmaps_of(device: BlockDevice) -> Bitmaps:
    """The bitmaps of an open qcow2 image, for changing if it is writable."""
    from imgtool.formats.qcow2.writable import WritableQcow2

    if isinstance(device, WritableQcow2):
        return device.bitmap_store
    assert isinstance(device, Qcow2Device)
    return _StoredBitmaps(device)


def _no_disk() -> ImageError:
    # A bitmap of no bits has no table, and with such a bitmap QEMU does not open the image.
    return ImageError("A disk of 0 bytes cannot have bitmaps")


def _directory_entry(entry: Bitmap) -> bytes:
    name = os_bytes(entry.name)
    head = build(
        schema.BITMAP_HEAD,
        {
            "bitmap_table_offset": entry.table_offset,
            "bitmap_table_size": entry.table_size,
            "flags": entry.flags,
            "type": DIRTY_TRACKING,
            "granularity_bits": entry.granularity.bit_length() - 1,
            "name_size": len(name),
            "extra_data_size": len(entry.extra_data),
        },
    )
    whole = head + entry.extra_data + name
    return whole.ljust(align_up(len(whole), 8), b"\0")
