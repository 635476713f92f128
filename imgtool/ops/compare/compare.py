"""The comparison of two disks."""

from __future__ import annotations

import enum
from typing import NamedTuple

from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.ops.compare.ranges import Alike, paired, windows
from imgtool.ops.compare.reader import first_difference
from imgtool.progress import Progress
from imgtool.units import align_down

#: Where the contents of two disks differ is told by sectors.
_SECTOR = 512


class Difference(enum.Enum):
    """What tells two disks apart; ``SIZE`` and ``ALLOCATION`` do so in strict mode only."""

    CONTENT = "content"
    SIZE = "size"
    ALLOCATION = "allocation"


class Comparison(NamedTuple):
    """What a comparison found. ``sizes`` are the two virtual sizes in bytes.

    ``difference`` is None if the disks are identical; ``offset`` is the byte offset of the first
    sector that differs, or of the first range whose allocation does.
    """

    sizes: tuple[int, int]
    difference: Difference | None = None
    offset: int | None = None

    @property
    def identical(self) -> bool:
        """Whether the contents are the same, and in strict mode sizes and allocation as well."""
        return self.difference is None


def compare(
    first: Reference,
    second: Reference,
    *,
    strict: bool = False,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two images with what they lie on, whatever their formats.

    Where sizes differ, what one disk has more must be zeros. With ``strict`` the sizes, and what
    is allocated, must agree as well. Once both are open, errors are :class:`UnknownAllocation` and
    :class:`Unreadable`.
    """
    opener = opener or Opener()
    with opener.reference(first) as one, opener.reference(second) as other:
        return compare_devices(one, other, strict=strict, progress=progress)


def compare_devices(
    first: BlockDevice,
    second: BlockDevice,
    *,
    strict: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two open disks; see :func:`compare`."""
    sizes = (first.size, second.size)
    if strict and first.size != second.size:
        return Comparison(sizes, Difference.SIZE)
    alike = Alike(first, second)
    total = max(sizes)
    found = first_difference(
        first,
        second,
        windows(alike if strict else paired(first, second)),
        lambda done: None if progress is None else progress(done, total),
    )
    if found is not None:
        return Comparison(sizes, Difference.CONTENT, align_down(found, _SECTOR))
    if alike.unlike is not None:
        return Comparison(sizes, Difference.ALLOCATION, alike.unlike)
    if progress is not None:
        progress(total, total)
    return Comparison(sizes)
