"""What may go wrong once both disks are open."""

from __future__ import annotations

from imgtool.errors import ImageError


class UnknownAllocation(ImageError):
    """What is allocated in a disk cannot be found out."""


class Unreadable(ImageError):
    """Something on a disk cannot be read."""


def reason(error: OSError | ImageError) -> str:
    """What an error says, without the name of the file."""
    if isinstance(error, ImageError):
        return error.reason
    return error.strerror or str(error)
