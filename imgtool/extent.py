"""What a range of a disk can be.

The truth table, in the words of ``qemu-img map --output=json``:

============  =======  =====  =====  ==========  =======
kind          present  zero   data   compressed  offset
============  =======  =====  =====  ==========  =======
DATA          true     hole   true   false       usually
ZERO          true     true   false  false       if host clusters are kept for it
UNALLOCATED   false    true   false  false       if host clusters are kept for it
COMPRESSED    true     false  true   true        never
============  =======  =====  =====  ==========  =======

A DATA extent with ``hole`` set is mapped as data, but the host file has nothing stored there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from imgtool.storage.base import Storage


class Kind(enum.Enum):
    """What is known of a range without reading it."""

    DATA = "data"
    ZERO = "zero"
    UNALLOCATED = "unallocated"
    COMPRESSED = "compressed"


class Extent(NamedTuple):
    """A range of a disk of which one thing is true. All numbers are bytes.

    ``storage`` and ``host_offset`` say where the bytes lie as they are; for COMPRESSED extents,
    which only drivers see undivided, where the ``encoded_length`` bytes of one cluster lie.
    ``depth`` is 0 for the image itself, 1 for its backing image, and so on.
    """

    offset: int
    length: int
    kind: Kind
    storage: Storage | None = None
    host_offset: int | None = None
    depth: int = 0
    hole: bool = False
    encoded_length: int = 0

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length

    @property
    def file(self) -> str | None:
        """The name of the host file in which the bytes lie, if they lie in one as they are."""
        if self.storage is None or self.host_offset is None:
            return None
        return self.storage.name

    @property
    def reads_zero(self) -> bool:
        """Whether the range is known to read as zeros."""
        return self.hole or self.kind is Kind.ZERO or self.kind is Kind.UNALLOCATED

    def clip(self, start: int, end: int) -> Extent:
        """Return the part that lies in ``[start, end)``, host offset moved with it.

        COMPRESSED extents keep their host range: a cluster is decoded as a whole.
        """
        offset = max(self.offset, start)
        length = min(self.end, end) - offset
        host_offset = self.host_offset
        if host_offset is not None and self.kind is not Kind.COMPRESSED:
            host_offset += offset - self.offset
        return self._replace(offset=offset, length=length, host_offset=host_offset)

    def joins(self, following: Extent) -> bool:
        """Whether ``following`` continues this extent, in the disk and in the host file alike."""
        if (
            self.offset + self.length != following.offset
            or self.kind is not following.kind
            or self.depth != following.depth
            or self.hole != following.hole
            or self.storage is not following.storage
        ):
            return False
        if self.kind is Kind.COMPRESSED:
            return self.host_offset is None and following.host_offset is None
        if self.host_offset is None:
            return following.host_offset is None
        return following.host_offset == self.host_offset + self.length


def coalesce(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of which the same is true; there may be gaps between extents."""
    pending: Extent | None = None
    for extent in extents:
        if pending is None:
            pending = extent
        elif pending.joins(extent):
            pending = pending._replace(length=pending.length + extent.length)
        else:
            yield pending
            pending = extent
    if pending is not None:
        yield pending
