"""The bitmap directory: what persistent dirty bitmaps an image has."""

from __future__ import annotations

from typing import NamedTuple

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.header import BitmapsExtension, Header
from imgtool.formats.qcow2.schema import BitmapFlag
from imgtool.schema.fields import parse
from imgtool.storage.base import Storage
from imgtool.units import align_up

MAX_NAME = 1023
MIN_GRANULARITY_BITS = 9
MAX_GRANULARITY_BITS = 31
#: QEMU's limit of what one bitmap may take in memory, and of its table.
MAX_BITMAP_BYTES = 512 << 20
#: What all bitmaps of an image together may take in memory at one time; bytes.
MAX_MEMORY = 64 << 20
DIRTY_TRACKING = 1
#: What an entry of the directory takes in memory besides its extra data and its name; bytes.
_ENTRY_BYTES = 512

_KNOWN_FLAGS = int(BitmapFlag.IN_USE | BitmapFlag.AUTO | BitmapFlag.EXTRA_DATA_COMPATIBLE)

_HEAD = schema.BITMAP_HEAD.sizeof()


class Bitmap(NamedTuple):
    """One entry of the bitmap directory. ``granularity`` is the bytes that one bit stands for."""

    name: str
    granularity: int
    flags: BitmapFlag
    table_offset: int
    table_size: int
    extra_data: bytes


def read_bitmaps(storage: Storage, header: Header) -> list[Bitmap]:
    """Read the bitmap directory, in its order. Raises :class:`CorruptImage` over the limits."""
    try:
        return _read_directory(storage, header)
    except CorruptImage as error:
        raise error.in_file(storage.name) from error.__cause__


def memory_of(bitmaps: list[Bitmap]) -> int:
    """About how many bytes of memory a list of bitmaps takes, without their contents."""
    return sum(_ENTRY_BYTES + len(one.extra_data) + len(one.name) for one in bitmaps)


def _read_directory(storage: Storage, header: Header) -> list[Bitmap]:
    extension = header.bitmaps
    if extension is None:
        return []
    memory = 2 * extension.directory_size + extension.number * _ENTRY_BYTES
    storage.account.check(memory, "The bitmap directory")
    directory = storage.read_exact(
        extension.directory_offset, extension.directory_size, "The bitmap directory"
    )
    return parse_directory(directory, header, extension)


def parse_directory(
    directory: bytearray, header: Header, extension: BitmapsExtension
) -> list[Bitmap]:
    """Parse and judge the bytes of a bitmap directory."""
    bitmaps: list[Bitmap] = []
    position = 0
    while position < len(directory):
        if len(bitmaps) == extension.number:
            raise CorruptImage("The bitmap directory has more entries than are counted")
        entry, position = _entry(directory, position, extension.directory_offset, header)
        bitmaps.append(entry)
    if len(bitmaps) != extension.number:
        raise CorruptImage("The bitmap directory has fewer entries than are counted")
    return bitmaps


def _entry(directory: bytearray, position: int, base: int, header: Header) -> tuple[Bitmap, int]:
    what, offset = "A bitmap directory entry", base + position
    head = parse(schema.BITMAP_HEAD, directory[position : position + _HEAD], what, offset)
    end = position + _HEAD + head.extra_data_size + head.name_size
    if end > len(directory):
        raise CorruptImage(f"{what} is longer than the directory", offset)
    if not MIN_GRANULARITY_BITS <= head.granularity_bits <= MAX_GRANULARITY_BITS:
        raise CorruptImage(f"{what} has a granularity of 2^{head.granularity_bits}", offset)
    if not 0 < head.name_size <= MAX_NAME:
        raise CorruptImage(f"{what} has a name of {head.name_size} bytes", offset)
    if head.type != DIRTY_TRACKING:
        raise CorruptImage(f"{what} has the unknown type {head.type}", offset)
    if head.flags & ~_KNOWN_FLAGS:
        raise CorruptImage(f"{what} has the unknown flags {head.flags & ~_KNOWN_FLAGS:#x}", offset)
    if head.bitmap_table_offset % header.geometry.cluster_size:
        raise CorruptImage(f"{what} has a table that is not aligned", head.bitmap_table_offset)
    if head.bitmap_table_size * header.geometry.cluster_size > MAX_BITMAP_BYTES:
        raise CorruptImage(f"{what} has a table that is too large", offset)
    extra = bytes(directory[position + _HEAD : position + _HEAD + head.extra_data_size])
    name = directory[end - head.name_size : end].decode("utf-8", "surrogateescape")
    bitmap = Bitmap(
        name=name,
        granularity=1 << head.granularity_bits,
        flags=BitmapFlag(head.flags),
        table_offset=head.bitmap_table_offset,
        table_size=head.bitmap_table_size,
        extra_data=extra,
    )
    return bitmap, align_up(end, 8)
