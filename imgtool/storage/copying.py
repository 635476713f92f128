"""Copying between two host files inside the kernel, which shares blocks where it can."""

from __future__ import annotations

import errno
import os

from imgtool.storage.host import LARGEST_REQUEST, uninterrupted

#: How the kernel says that it can't do this between these two files, or at these offsets.
_CANNOT = frozenset(
    {
        errno.EBADF,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.EXDEV,
    }
)


def copy(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
    """Copy between two descriptors; return how many bytes were copied from the front.

    Fewer than ``length`` means that the source ends, or that the kernel cannot copy the rest.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    done = 0
    while done < length:
        step = min(length - done, LARGEST_REQUEST)
        try:
            count = uninterrupted(
                os.copy_file_range, source, target, step, source_offset + done, offset + done
            )
        except OSError as error:
            if error.errno in _CANNOT:
                break
            raise
        if not count:
            break
        done += count
    return done
