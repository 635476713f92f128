"""Writing the header so that it is either the old one or the new one, whatever arrives of it.

A disk writes a sector whole or not at all, and a header may take several. Where only one of them
changes, writing is all there is to it. Otherwise the header goes into its first sector alone, for
a moment: without the feature names, which are a courtesy, and with the name of the backing file in
a place that nothing referred to. Then the rest is written, and then the first sector again.
"""

from __future__ import annotations

from imgtool.formats.qcow2.header import Header, os_bytes
from imgtool.formats.qcow2.schema import ExtensionType
from imgtool.storage.base import Storage
from imgtool.units import align_down, align_up

_SECTOR = 512
#: How far into the first cluster a name is put out of the way, where the cluster is larger.
_REACH = 8192
#: Where a header says where the name of its backing file lies, and how long it is.
_NAME_PLACE, _NAME_END = 8, 20


def write_header(storage: Storage, header: Header) -> None:
    """Write the header and wait for it. What it makes visible is durable already.

    Extensions that by themselves take more than a sector (the name of a data file may be long) are
    written in one go, and can be torn.
    """
    data = header.build()
    old = storage.read_at(0, align_up(len(data), _SECTOR))
    if _changed_sectors(old, data) > 1:
        first = _first_sector(storage, header, old, len(data))
        if first is not None:
            storage.write_at(0, first)
            storage.flush()
        storage.write_at(_SECTOR, data[_SECTOR:])
        storage.flush()
    storage.write_at(0, data)
    storage.flush()


def begin_header(storage: Storage, header: Header) -> None:
    """Wait for what the file holds, and write the header that it lacks, the first sector last.

    Closing the image waits for that one.
    """
    data = header.build()
    storage.write_at(_SECTOR, data[_SECTOR:])
    storage.flush()
    storage.write_at(0, data[:_SECTOR])


def _changed_sectors(old: bytes, data: bytes) -> int:
    return sum(
        old[start : start + len(data[start : start + _SECTOR])] != data[start : start + _SECTOR]
        for start in range(0, len(data), _SECTOR)
    )


def _first_sector(storage: Storage, header: Header, old: bytes, length: int) -> bytes | None:
    """The header in one sector, its backing file's name durable elsewhere if it has to be."""
    bare = header.with_extension(ExtensionType.FEATURE_NAMES, None)
    data = bare.build()
    if len(data) <= _SECTOR:
        return data.ljust(_SECTOR, b"\0")
    name = os_bytes(header.backing_file or "")
    if not name or len(data) - len(name) > _SECTOR:
        return None
    place = _place_for(len(name), header, old, length)
    if place is None:
        return None
    storage.write_at(place, name)
    storage.flush()
    return bare.build(name_offset=place)[:_SECTOR].ljust(_SECTOR, b"\0")


def _place_for(size: int, header: Header, old: bytes, length: int) -> int | None:
    """A place in the first cluster for a name, which neither the old nor the new header uses."""
    start = int.from_bytes(old[_NAME_PLACE : _NAME_PLACE + 8], "big")
    end = start + int.from_bytes(old[_NAME_END - 4 : _NAME_END], "big")
    reach = min(header.geometry.cluster_size, _REACH)
    place = align_down(reach - size, _SECTOR)
    if start < place + size and place < end:
        place = align_down(start - size, _SECTOR)
    return place if place >= align_up(length, _SECTOR) else None
