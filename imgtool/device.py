"""BlockDevice: a virtual disk.

The one place where guest ranges are checked. Everything is in bytes and positional: a device has
no seek position, so any number of threads may use one at once. Drivers implement the hooks whose
names begin with an underscore; those are always called with ranges inside the disk and never empty.
"""

from __future__ import annotations

import abc
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from imgtool.errors import BadOption, ImageError, OutOfRange, ReadOnly
from imgtool.extent import Extent, Kind, coalesce

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from imgtool.description import SnapshotInfo
    from imgtool.storage.base import Storage


class Limits(NamedTuple):
    """What a device prefers. All numbers are bytes; none is needed for correctness."""

    alignment: int = 1
    preferred: int = 64 << 10
    largest: int = 32 << 20


class StoredBitmap(NamedTuple):
    """A bitmap of changes that an image keeps. One bit stands for ``granularity`` bytes.

    It is ``enabled`` if it follows writes, and ``inconsistent`` if it was not stored properly, so
    that all that can be done is to remove it.
    """

    name: str
    granularity: int
    enabled: bool = True
    inconsistent: bool = False


class BlockDevice(abc.ABC):
    """A virtual disk of ``size`` bytes.

    ``name`` is the file's name as given; ``format`` the name of its format; ``read_only`` whether
    writes raise :class:`~imgtool.errors.ReadOnly`. Reads and writes outside ``[0, size)`` raise
    :class:`~imgtool.errors.OutOfRange`; nothing is ever read or written short. ``stores_zeros``
    says that the disk has no holes: zeros are written like any other data.
    """

    name: str
    format: str
    read_only: bool = True
    stores_zeros: bool = False

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The virtual size in bytes: what a guest sees."""

    @property
    def limits(self) -> Limits:
        """The request sizes and alignment that suit this device."""
        return Limits()

    @property
    def children(self) -> Mapping[str, BlockDevice | Storage]:
        """What the device reads from, by role: ``file``, ``data-file``, ``backing``."""
        return {}

    @property
    def backing(self) -> BlockDevice | None:
        """The device that unallocated ranges are read from, if there is one."""
        return None

    @property
    def stored_bitmaps(self) -> Sequence[StoredBitmap] | None:
        """The bitmaps that the image keeps, or None if it cannot keep any."""
        return None

    @property
    def stored_snapshots(self) -> Sequence[SnapshotInfo] | None:
        """The internal snapshots that the image keeps, or None if it cannot keep any."""
        return None

    # Reading

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the ``length`` bytes at ``offset``."""
        self._check(offset, length)
        return self._read_bytes(offset, length) if length else b""

    def read_into(self, offset: int, buffer: WriteableBuffer) -> None:
        """Fill ``buffer`` with the bytes at ``offset``."""
        view = _bytes_of(buffer)
        if view.readonly:
            raise TypeError("a buffer to read into must be writable")
        self._check(offset, len(view))
        if view:
            self._read(offset, view)

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Cover a range (the whole disk by default), through the backing chain, with extents.

        They are contiguous, in order, coalesced, and nothing is missing.
        """
        return self._told_by(self._extents, offset, length)

    def kinds(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Cover a range as :meth:`extents` does, with extents that do not say where bytes lie.

        What is all of a kind is one extent, however many pieces it is in. Any of it may have a host
        range all the same.
        """
        return self._told_by(self._kinds, offset, length)

    def _told_by(
        self, tell: Callable[[int, int], Iterator[Extent]], offset: int, length: int | None
    ) -> Iterator[Extent]:
        if length is None:
            length = self.size - offset
        self._check(offset, length)
        return coalesce(tell(offset, length)) if length else iter(())

    def as_file(self) -> DeviceFile:
        """Return a raw file object over the disk, with a position of its own.

        Closing it leaves the device open. Several may be in use at once.
        """
        return DeviceFile(self)

    # Writing

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        """Write ``data`` at ``offset``. It is durable after :meth:`flush`."""
        view = _bytes_of(data)
        self._check_write(offset, len(view))
        if view:
            self._write(offset, view)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """Make a range read as zeros; with ``unmap``, give its host storage back where possible."""
        self._check_write(offset, length)
        if length:
            self._write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed. What it reads as afterwards is not defined."""
        self._check_write(offset, length)
        if length:
            self._discard(offset, length)

    def flush(self) -> None:
        """Make everything written so far durable."""
        if not self.read_only:
            self._flush()

    # Writing in bulk: what the copy engine uses, from one thread unless said otherwise

    def reserve(self, offset: int, length: int) -> list[Extent]:
        """Take host storage for a range that is about to be overwritten whole.

        ``offset`` is a multiple of ``limits.alignment``, and so is ``length`` unless the range ends
        the disk. Returns DATA extents that cover the range and say where its bytes belong; nothing
        shows before :meth:`link`.
        """
        self._check_write(offset, length)
        return self._reserve(offset, length)

    def link(self, extents: Iterable[Extent]) -> None:
        """Make reserved extents, whose bytes have been written, part of the disk."""
        self._link(extents)

    @property
    def encoded_size(self) -> int:
        """The guest bytes that :meth:`encode` makes a piece of; 0 if the format cannot compress."""
        return 0

    def encode(self, data: ReadableBuffer, level: int | None = None) -> list[bytes | None]:
        """Compress every ``encoded_size`` bytes; None for those of which that saves nothing.

        Any thread may call it.
        """
        raise self._cannot("hold compressed data")

    def write_encoded(self, offset: int, encoded: Sequence[bytes]) -> None:
        """Store what :meth:`encode` made of the bytes from ``offset`` on, a piece for each part."""
        raise self._cannot("hold compressed data")

    def resize(self, size: int, *, preallocation: str = "off") -> None:
        """Set the virtual size; what comes into being reads as zeros (unless ``stores_zeros``).

        ``preallocation`` says what is done for it: ``off``, ``metadata``, ``falloc`` or ``full``.
        """
        if self.read_only:
            raise ReadOnly("The disk is open read-only", filename=self.name)
        if size < 0:
            raise BadOption(f"A disk cannot have {size} bytes", filename=self.name)
        if preallocation not in ("off", "metadata", "falloc", "full"):
            raise BadOption(f"Invalid preallocation mode '{preallocation}'")
        self._resize(size, preallocation)

    # The backing image

    def change_backing(self, name: str | None, format: str | None) -> None:
        """Record another backing file, or none, and its format. It counts from the next open on.

        What the disk holds is the caller's business: see :mod:`imgtool.ops.rebase`.
        """
        raise self._cannot("record a backing file")

    def expect_other_backing(self) -> None:
        """Store zeros as such from now on, even where the backing image has them already."""
        raise self._cannot("record a backing file")

    def make_empty(self) -> None:
        """Let go of all that the image itself holds, so that only its backing image shows."""
        raise self._cannot("be emptied")

    # Giving back host storage

    def reclaimable(self) -> Iterator[Extent]:
        """The DATA extents, in order, that :meth:`reclaim` could give back if they are zeros."""
        for extent in () if self.stores_zeros else self.extents():
            if extent.kind is Kind.DATA and not extent.depth:
                yield extent

    def reclaim(self, offset: int, length: int) -> None:
        """Give back the host storage of a range that is known to read as zeros."""
        self.write_zeroes(offset, length, unmap=True)

    def trim(self) -> None:
        """Give back what the image's file keeps for nothing.

        It must have been checked before: what is not counted as used is given back.
        """
        self.flush()

    @property
    def creation_options(self) -> Mapping[str, object]:
        """The options, as the format's table has them, that make another image like this one.

        Those that name files are not among them.
        """
        return {}

    # Internal snapshots

    def create_snapshot(self, name: str) -> None:
        """Keep the disk as it is now as a snapshot called ``name``; names need not differ."""
        raise self._no_snapshots()

    def apply_snapshot(self, wanted: str) -> None:
        """Make the disk what it was when the snapshot with this id, or else name, was taken."""
        raise self._no_snapshots()

    def delete_snapshot(self, name: str) -> None:
        """Remove the first snapshot of this name."""
        raise self._no_snapshots()

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and release everything. Closing twice is harmless."""

    # Hooks

    @abc.abstractmethod
    def _read(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes at ``offset``."""

    def _read_bytes(self, offset: int, length: int) -> bytes:
        """Return the bytes at ``offset``. A device that need not copy them overrides this."""
        buffer = bytearray(length)
        self._read(offset, memoryview(buffer))
        return bytes(buffer)

    @abc.abstractmethod
    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Cover the range with extents, contiguous and in order; they need not be coalesced."""

    def _kinds(self, offset: int, length: int) -> Iterator[Extent]:
        """The same for :meth:`kinds`. A device for which that is less work overrides this."""
        return self._extents(offset, length)

    def _write(self, offset: int, view: memoryview) -> None:
        raise self._cannot("be written")

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        step = min(length, 1 << 20)
        zeros = memoryview(bytes(step))
        for start in range(offset, offset + length, step):
            self._write(start, zeros[: offset + length - start])

    def _discard(self, offset: int, length: int) -> None:
        return None  # a discard is only a hint

    def _reserve(self, offset: int, length: int) -> list[Extent]:
        raise self._cannot("be written")

    def _link(self, extents: Iterable[Extent]) -> None:
        raise self._cannot("be written")

    def _flush(self) -> None:
        raise self._cannot("be flushed")

    def _resize(self, size: int, preallocation: str) -> None:
        raise self._cannot("be resized")

    def _cannot(self, what: str) -> ImageError:
        return ImageError(f"Images of format '{self.format}' cannot {what}", filename=self.name)

    def _no_snapshots(self) -> ImageError:
        return ImageError(
            f"Operation not supported: images of format '{self.format}' have no snapshots",
            filename=self.name,
        )

    # Checks

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(
                f"Offset {offset} with length {length} lies outside the disk of {self.size} bytes",
                filename=self.name,
            )

    def _check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise ReadOnly("The disk is open read-only", filename=self.name)
        self._check(offset, length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class DeviceFile(io.RawIOBase):
    """A disk as a raw, seekable file of fixed length, for libraries that want one.

    Reads at the end are short, as a file's are; writes stop at the end of the disk.
    """

    def __init__(self, device: BlockDevice) -> None:
        super().__init__()
        self._device = device
        self._position = 0

    @property
    def name(self) -> str:
        return self._device.name

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return not self._device.read_only

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._device.size}
        if whence not in base:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._check_open()
        view = _bytes_of(buffer)
        count = max(0, min(len(view), self._device.size - self._position))
        self._device.read_into(self._position if count else 0, view[:count])
        self._position += count
        return count

    def write(self, data: ReadableBuffer) -> int:
        self._check_open()
        view = _bytes_of(data)
        count = max(0, min(len(view), self._device.size - self._position))
        if view and not count:
            raise OutOfRange("No space is left behind the end of the disk", filename=self.name)
        self._device.write_at(self._position if count else 0, view[:count])
        self._position += count
        return count

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _bytes_of(buffer: ReadableBuffer) -> memoryview:
    view = memoryview(buffer)
    # A view of several dimensions cannot be cast if one of them is 0.
    return view.cast("B") if view.nbytes else memoryview(bytearray())
