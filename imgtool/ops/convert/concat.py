"""Several disks as one: what ``convert`` reads when it is given several sources."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from imgtool.device import BlockDevice
from imgtool.extent import Extent
from imgtool.storage.base import Storage


class ConcatDevice(BlockDevice):
    """The disks of ``parts`` one behind the other. Closing it closes them."""

    format = "concat"

    def __init__(self, parts: Sequence[BlockDevice]) -> None:
        self._parts = list(parts)
        self._starts: list[int] = []
        self._size = 0
        for part in self._parts:
            self._starts.append(self._size)
            self._size += part.size
        self.name = self._parts[0].name

    @property
    def size(self) -> int:
        return self._size

    @property
    def children(self) -> Mapping[str, BlockDevice | Storage]:
        return {f"part.{index}": part for index, part in enumerate(self._parts)}

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[BlockDevice, int, int, int]]:
        """Cover a range with ``(part, its start, offset in it, length)``."""
        end = offset + length
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            part, start = self._parts[index], self._starts[index]
            stop = min(end, start + part.size)
            if stop > offset:
                yield part, start, offset - start, stop - offset
                offset = stop
            index += 1

    def _read(self, offset: int, view: memoryview) -> None:
        done = 0
        for part, _, inner, length in self._pieces(offset, len(view)):
            part.read_into(inner, view[done : done + length])
            done += length

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for part, start, inner, count in self._pieces(offset, length):
            for extent in part.extents(inner, count):
                yield extent._replace(offset=extent.offset + start)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.callback(part.close)
