"""Finding and making holes in a host file, and reserving storage for it."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from imgtool.storage.base import HostRange
from imgtool.storage.host import Descriptor, uninterrupted

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

#: How a host says that it, or the file system, or the device, cannot do it at this place.
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY}
)


def find(file: Descriptor, offset: int, end: int) -> Iterator[HostRange]:
    """Cover ``[offset, end)``, which must lie inside the file, with its data and its holes.

    All of it is data where the host cannot tell. Neighbours may be alike.
    """
    if not hasattr(os, "SEEK_DATA"):
        yield HostRange(offset, end - offset, True)
        return
    while offset < end:
        try:
            data = min(_seek(file, offset, os.SEEK_DATA, end), end)
            hole = min(_seek(file, data, os.SEEK_HOLE, data), end) if data < end else end
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            data, hole = offset, end
        if hole <= offset:  # the file changed between the two calls
            data, hole = offset, end
        if data > offset:
            yield HostRange(offset, data - offset, False)
        if hole > data:
            yield HostRange(data, hole - data, True)
        offset = hole


def _seek(file: Descriptor, offset: int, whence: int, nothing: int) -> int:
    """``lseek``; returns ``nothing`` if there is no data or no hole from ``offset`` on."""
    try:
        return file.seek(offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return nothing
        raise


def merge(ranges: Iterable[HostRange]) -> Iterator[HostRange]:
    """Join neighbours that are alike, and drop what is empty."""
    held: HostRange | None = None
    for item in ranges:
        if held is not None and held.is_data == item.is_data:
            held = HostRange(held.offset, held.length + item.length, held.is_data)
        elif item.length:
            if held is not None:
                yield held
            held = item
    if held is not None:
        yield held


def punch(file: Descriptor, offset: int, length: int) -> bool:
    """Give back the storage of a range inside the file, which then reads as zeros.

    Returns false, with nothing done, if the host cannot. ``length`` must not be 0.
    """
    return _allocate(file, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero(file: Descriptor, offset: int, length: int, *, keep_size: bool = False) -> bool:
    """Make a range read as zeros and keep its storage, growing the file unless ``keep_size``.

    Returns false, with nothing done, if the host cannot. ``length`` must not be 0.
    """
    return _allocate(file, _ZERO_RANGE | (_KEEP_SIZE if keep_size else 0), offset, length)


def reserve(file: Descriptor, offset: int, length: int) -> bool:
    """Reserve storage for a range, growing the file, and keep what it holds.

    Returns false, with nothing done, if the host cannot. ``length`` must not be 0.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        with file as number:
            uninterrupted(os.posix_fallocate, number, offset, length)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _allocate(file: Descriptor, mode: int, offset: int, length: int) -> bool:
    call = system_fallocate()
    if call is None:
        return False

    def allocate(number: int) -> bool:
        code = call(number, mode, offset, length)
        if code and code not in _CANNOT:
            raise OSError(code, os.strerror(code))
        return not code

    with file as number:
        return uninterrupted(allocate, number)


@functools.cache
def system_fallocate() -> Callable[[int, int, int, int], int] | None:
    """Linux's ``fallocate`` as a function that returns 0 or an errno; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int

    def call(number: int, mode: int, offset: int, length: int) -> int:
        return ctypes.get_errno() if function(number, mode, offset, length) else 0

    return call
