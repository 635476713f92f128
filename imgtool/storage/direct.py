"""I/O that goes round the host's page cache (O_DIRECT), for the cache modes none and directsync."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from imgtool.storage.host import Descriptor

#: What offset, length and address of a direct request are multiples of; bytes.
ALIGNMENT = 4096

_BOUNCE = 1 << 20


class DirectFile:
    """Positional I/O on an open file through a second descriptor that has O_DIRECT.

    Reads that are not aligned go through an aligned buffer. The unaligned ends of a write go
    through the plain descriptor, with which Linux keeps direct I/O coherent: nothing beyond the
    write is touched, and nobody else's bytes are read and written back. From the first request
    that the file system refuses (EINVAL), everything goes through the plain descriptor.
    """

    def __init__(self, plain: Descriptor, direct: Descriptor) -> None:
        self._plain = plain
        self._direct: Descriptor | None = direct
        self._owned = direct
        self._buffers: list[mmap.mmap] = []

    @classmethod
    def over(cls, plain: Descriptor, *, writable: bool) -> DirectFile | None:
        """Open the file of ``plain`` a second time; None if the host or its file system refuses."""
        if not hasattr(os, "O_DIRECT"):
            return None
        flags = os.O_DIRECT | (os.O_RDWR if writable else os.O_RDONLY)
        try:
            return cls(plain, Descriptor(os.open(f"/proc/self/fd/{plain.fileno()}", flags)))
        except OSError:
            return None

    def read(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from ``offset``; return how many bytes, fewer only at the file's end."""
        direct = self._direct
        if direct is not None:
            try:
                return self._read(direct, view, offset)
            except OSError as error:
                self._give_up(error)
        return self._plain.read(view, offset)

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of ``view`` at ``offset``, and not a byte more."""
        direct = self._direct
        if direct is not None:
            head = min(-offset % ALIGNMENT, len(view))
            tail = head + (len(view) - head) // ALIGNMENT * ALIGNMENT
            try:
                self._write(direct, view[head:tail], offset + head)
            except OSError as error:
                self._give_up(error)
            else:
                self._plain.write(view[:head], offset)
                self._plain.write(view[tail:], offset + tail)
                return
        self._plain.write(view, offset)

    def close(self) -> None:
        """Close the second descriptor. Closing twice is harmless."""
        self._owned.close()

    def _read(self, direct: Descriptor, view: memoryview, offset: int) -> int:
        if view and not (offset | len(view)) % ALIGNMENT and _is_aligned(view):
            return _read_aligned(direct, view, offset)
        buffer = self._borrow()
        room = memoryview(buffer)
        done = 0
        try:
            while done < len(view):
                skip = (offset + done) % ALIGNMENT
                wanted = min(len(view) - done, _BOUNCE - skip)
                span = -(-(skip + wanted) // ALIGNMENT) * ALIGNMENT
                found = _read_aligned(direct, room[:span], offset + done - skip) - skip
                count = min(max(found, 0), wanted)
                view[done : done + count] = room[skip : skip + count]
                done += count
                if count < wanted:
                    break
        finally:
            self._buffers.append(buffer)
        return done

    def _write(self, direct: Descriptor, view: memoryview, offset: int) -> None:
        if not view or _is_aligned(view):
            direct.write(view, offset)
            return
        buffer = self._borrow()
        room = memoryview(buffer)
        try:
            for start in range(0, len(view), _BOUNCE):
                part = view[start : start + _BOUNCE]
                room[: len(part)] = part
                direct.write(room[: len(part)], offset + start)
        finally:
            self._buffers.append(buffer)

    def _borrow(self) -> mmap.mmap:
        try:
            return self._buffers.pop()
        except IndexError:
            return mmap.mmap(-1, _BOUNCE)

    def _give_up(self, error: OSError) -> None:
        if error.errno != errno.EINVAL:
            raise error
        self._direct = None


def _is_aligned(view: memoryview) -> bool:
    """Say if ``view`` starts at an aligned address; a view that can't be asked is taken not to."""
    if view.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % ALIGNMENT == 0


def _read_aligned(direct: Descriptor, view: memoryview, offset: int) -> int:
    """Read until ``view`` is full or the file ends; a count that is not aligned is its end."""
    done = 0
    while done < len(view):
        count = direct.read_some(view[done:], offset + done)
        done += count
        if not count or count % ALIGNMENT:
            break
    return done
