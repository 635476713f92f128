"""Copying between two host files inside the kernel, and sharing blocks instead of copying."""

from __future__ import annotations

import errno
import os
import struct
import sys

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

_FICLONERANGE = 0x4020940D


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


def share(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
    """Let a range of one file share its blocks with another (XFS, Btrfs: FICLONERANGE).

    Returns ``length``, or 0 with nothing done where the file systems cannot: offsets and ``length``
    must be multiples of their block size. ``length`` must not be 0.
    """
    try:
        import fcntl
    except ImportError:
        return 0
    if not sys.platform.startswith("linux"):
        return 0
    # struct file_clone_range of linux/fs.h
    request = struct.pack("=qQQQ", source, source_offset, length, offset)
    try:
        uninterrupted(fcntl.ioctl, target, _FICLONERANGE, request)
    except OSError as error:
        if error.errno in _CANNOT or error.errno in (errno.ENOTTY, errno.ETXTBSY):
            return 0
        raise
    return length
