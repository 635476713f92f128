"""Map: which parts of a disk are stored, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from imgtool.chain import Opener, Reference
from imgtool.extent import Extent, Kind


@contextlib.contextmanager
def mapping(
    reference: Reference,
    *,
    start_offset: int = 0,
    max_length: int | None = None,
    opener: Opener | None = None,
) -> Iterator[Iterator[Extent]]:
    """Open an image and give the extents of it and its backing chain, one after the other.

    They cover the disk from ``start_offset`` on, ``max_length`` bytes at most; what lies past its
    end is left out.
    """
    with (opener or Opener()).reference(reference) as device:
        start = min(start_offset, device.size)
        length = device.size - start
        yield device.extents(start, length if max_length is None else min(length, max_length))


def map_image(
    reference: Reference,
    *,
    start_offset: int = 0,
    max_length: int | None = None,
    opener: Opener | None = None,
) -> Iterator[Extent]:
    """Give the extents of an image, which is open while the iterator is in use; see `mapping`."""
    with mapping(
        reference, start_offset=start_offset, max_length=max_length, opener=opener
    ) as extents:
        yield from extents


def extent_dict(extent: Extent) -> dict[str, Any]:
    """Return what ``qemu-img map --output=json`` prints of an extent, keys in its order."""
    values: dict[str, Any] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.kind is not Kind.UNALLOCATED,
        "zero": extent.reads_zero,
        "data": extent.kind is Kind.DATA or extent.kind is Kind.COMPRESSED,
        "compressed": extent.kind is Kind.COMPRESSED,
    }
    if extent.host_offset is not None:
        values["offset"] = extent.host_offset
    return values
