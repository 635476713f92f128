"""Storage: where the bytes of a host file live.

A storage knows nothing of image formats. All I/O is positional, in bytes, and safe from any
number of threads at once. Reading past the end gives zeros, as a guest sees the last cluster of
a file that ends early; structures that must be whole are read with :meth:`Storage.read_exact`.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from imgtool.budget import UNLIMITED, Account
from imgtool.errors import CorruptImage
from imgtool.storage.bounds import check_range

if TYPE_CHECKING:
    import io

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from imgtool.storage.directory import Directory


class HostRange(NamedTuple):
    """A range of a host file: ``is_data`` is false where the file is known to have a hole."""

    offset: int
    length: int
    is_data: bool


class Storage(abc.ABC):
    """A growable sequence of bytes.

    ``name`` is what messages and ``map`` call it. ``read_only`` says whether writes are refused
    (with :class:`~imgtool.errors.ReadOnly`). ``OSError`` passes through everywhere.
    """

    name: str
    read_only: bool
    #: What offsets, lengths and buffers should be multiples of for I/O without copies; bytes.
    alignment: int = 1
    #: Where whoever keeps structures of this file in memory charges them; :meth:`close` closes it.
    account: Account = UNLIMITED
    #: The directory that names stored in this file are relative to, where it is held open.
    names_from: Directory | None = None

    @property
    def identity(self) -> Hashable | None:
        """What two opens of one file have in common (device and inode), or None if unknown."""
        return None

    @property
    def directory(self) -> str | None:
        """The directory that names stored in this file are relative to, or None if it has none."""
        return None

    @abc.abstractmethod
    def size(self) -> int:
        """The length in bytes, now."""

    @abc.abstractmethod
    def allocated(self) -> int:
        """How many bytes of host storage the file occupies."""

    @abc.abstractmethod
    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` from ``offset``; what lies past the end is set to zero.

        Returns how many of the bytes exist in the file.
        """

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; what lies past the end is zero."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_exact(self, offset: int, length: int, what: str) -> bytearray:
        """Return ``length`` bytes that must all exist; ``what`` names the structure they hold.

        Raises :class:`CorruptImage` if the file ends first, before memory is taken for them. No
        bytes at all exist anywhere.
        """
        if offset < 0 or (length and offset + length > self.size()):
            raise CorruptImage(f"{what} lies past the end of the file", offset, filename=self.name)
        buffer = bytearray(length)
        if self.read_into(offset, buffer) != length:
            raise CorruptImage(f"{what} lies past the end of the file", offset, filename=self.name)
        return buffer

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        """Cover ``[offset, offset + length)`` with ranges of data and of holes, in order.

        Neighbours differ. What lies past the end of the file is a hole. A storage that cannot
        tell reports all that exists as data, as here.
        """
        end = check_range(offset, length, self.name)
        inside = max(offset, min(end, self.size()))
        found = (HostRange(offset, inside - offset, True), HostRange(inside, end - inside, False))
        return (part for part in found if part.length)

    @abc.abstractmethod
    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        """Write all of ``data`` at ``offset``, growing the file if needed."""

    @abc.abstractmethod
    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeros, growing the file if needed.

        With ``unmap`` host storage is given back where the host can; without, it is kept allocated.
        """

    def discard(self, offset: int, length: int) -> None:
        """Give host storage of a range inside the file back, where the host can.

        What the range reads as afterwards is not defined.
        """
        return

    @abc.abstractmethod
    def truncate(self, size: int) -> None:
        """Set the length; bytes that come into being read as zero and occupy nothing."""

    @abc.abstractmethod
    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        """Reserve host storage for a range, growing the file; with ``full`` by writing zeros.

        What the range held is kept, unless ``full`` is set: then it is overwritten.
        """

    @abc.abstractmethod
    def flush(self) -> None:
        """Make everything written durable (fsync).

        After it has failed once nobody knows what is on the disk: every later write and flush
        raises the same error.
        """

    def duplicate(self) -> io.FileIO | None:
        """The open host file once more, which keeps its locks as well; None if there is none."""
        return None

    def fileno(self) -> int | None:
        """The descriptor of a plain host file, for copies inside the kernel, or None."""
        return None

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
        """Copy inside the kernel, sharing blocks where the host file system can.

        Returns how many bytes were copied from the front of the range: 0 means that the kernel
        cannot do it between these two, and the caller copies the rest by reading and writing.
        """
        return 0

    def share_from(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        """Let a range share its blocks with one of ``source``, which is like copying it.

        Returns false, with nothing done, where the host cannot do that between these two.
        """
        return False

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file and its locks. Closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
