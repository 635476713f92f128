"""The checks on offsets that every storage makes, and zeros to write piece by piece."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from imgtool.zeros import ZEROS

#: Where the largest host file ends: offsets are signed 64-bit numbers; bytes.
MAX_OFFSET = (1 << 63) - 1


def check_range(offset: int, length: int, name: str) -> int:
    """Return the end of a range, in bytes, that is to be written.

    Raises ``OSError``: EINVAL for a negative offset or length, EFBIG past :data:`MAX_OFFSET`.
    """
    end = offset + length
    if offset < 0 or length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    if end > MAX_OFFSET:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    return end


def check_offset(offset: int, name: str) -> None:
    """Raise ``OSError`` (EINVAL) for a negative offset, where any other may be read."""
    if offset < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)


def zero_pieces(offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Cover a range with ``(offset, zeros)`` of at most :data:`~imgtool.zeros.PIECE` bytes each."""
    end = offset + length
    while offset < end:
        zeros = ZEROS[: end - offset]
        yield offset, zeros
        offset += len(zeros)
