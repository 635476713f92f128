"""OverlayStorage: what would become of a storage, without writing to it."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from imgtool import zeros
from imgtool.storage.base import HostRange, Storage
from imgtool.storage.bounds import check_range, zero_pieces
from imgtool.storage.fileobj import FileObjectStorage
from imgtool.storage.holes import merge
from imgtool.units import align_down, div_round_up

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_BLOCK = 16 << 10


class OverlayStorage(Storage):
    """Reads ``base``, and keeps all that is written in a temporary file.

    Closing it forgets what was written and leaves ``base`` open, which must not change meanwhile.
    It is for one thread.
    """

    read_only = False

    def __init__(self, base: Storage) -> None:
        self.name = base.name
        self.account = base.account
        self._base = base
        self._size = base.size()
        #: What is read of ``base``: it ends here for good once the file has been shorter.
        self._base_end = self._size
        # The storage closes it.
        file = tempfile.TemporaryFile(prefix="imgtool-")  # noqa: SIM115
        self._written = FileObjectStorage(file, owned=True)
        self._blocks: set[int] = set()

    @property
    def directory(self) -> str | None:
        return self._base.directory

    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return self._base.allocated() + len(self._blocks) * _BLOCK

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._blocks:
            self._read_base(offset, view)
        else:
            done = 0
            while done < len(view):
                done += self._read_part(offset + done, view[done:])
        return max(0, min(len(view), self._size - offset))

    def _read_part(self, offset: int, view: memoryview) -> int:
        """Read from where it lies up to the first block that lies elsewhere."""
        block, end = offset // _BLOCK, offset + len(view)
        written = block in self._blocks
        while block * _BLOCK < end and (block in self._blocks) == written:
            block += 1
        part = view[: block * _BLOCK - offset]
        if written:
            self._written.read_into(offset, part)
        else:
            self._read_base(offset, part)
        return len(part)

    def _read_base(self, offset: int, view: memoryview) -> None:
        inside = max(0, min(len(view), self._base_end - offset))
        if inside:
            self._base.read_into(offset, view[:inside])
        zeros.fill(view[inside:])

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        end = check_range(offset, length, self.name)
        return merge(self._find(offset, end))

    def _find(self, offset: int, end: int) -> Iterator[HostRange]:
        """The ranges of ``base``, with what was written among them."""
        inside = max(offset, min(end, self._base_end))
        below = chain(
            self._base.ranges(offset, inside - offset), (HostRange(inside, end - inside, False),)
        )
        written = sorted(self._blocks)
        for part in below:
            done, stop = part.offset, part.offset + part.length
            place = bisect_left(written, done // _BLOCK)
            while place < len(written) and written[place] * _BLOCK < stop and not part.is_data:
                start = max(done, written[place] * _BLOCK)
                following = min(stop, (written[place] + 1) * _BLOCK)
                yield HostRange(done, start - done, False)
                yield HostRange(start, following - start, True)
                done, place = following, place + 1
            yield HostRange(done, stop - done, part.is_data)

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data).cast("B")
        end = check_range(offset, len(view), self.name)
        if not view:
            return
        for block in range(offset // _BLOCK, div_round_up(end, _BLOCK)):
            if block not in self._blocks:
                start = block * _BLOCK
                if start < offset or start + _BLOCK > end:
                    self._written.write_at(start, self.read_at(start, _BLOCK))
                self._blocks.add(block)
        self._written.write_at(offset, view)
        self._size = max(self._size, end)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for start, piece in zero_pieces(offset, length):
            self.write_at(start, piece)

    def truncate(self, size: int) -> None:
        check_range(size, 0, self.name)
        if size < self._size:
            # Whatever is behind the new end must read as zeros if the file grows again.
            block = align_down(size, _BLOCK)
            if size > block:
                self.write_at(size, bytes(block + _BLOCK - size))
            self._blocks = {number for number in self._blocks if number * _BLOCK < size}
            self._base_end = min(self._base_end, size)
        self._size = size

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        if full:
            self.write_zeroes(offset, length)
        self._size = max(self._size, check_range(offset, length, self.name))

    def flush(self) -> None:
        return

    def close(self) -> None:
        self._written.close()
