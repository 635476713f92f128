"""Which host files a device reads, so that nothing is written over them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from imgtool.device import BlockDevice
from imgtool.errors import BadOption
from imgtool.names import identity_of
from imgtool.storage.base import Storage


def identities(device: BlockDevice) -> Iterator[Hashable]:
    """What tells the files from others that ``device`` and all below it are kept in."""
    for child in device.children.values():
        if not isinstance(child, Storage):
            yield from identities(child)
        elif child.identity is not None:
            yield child.identity


def refuse_files_that_are_read(target: str | Storage, read: set[Hashable]) -> None:
    """Raise :class:`BadOption` if ``target``, a path or a storage, is one of the files ``read``.

    Locks alone do not see it: not where they are not taken (-U), nor where a file is replaced.
    """
    try:
        found = target.identity if isinstance(target, Storage) else identity_of(target)
    except OSError:
        return  # whoever opens it says so
    if found is not None and found in read:
        raise BadOption(
            "The target would overwrite a file that is being read",
            filename=target if isinstance(target, str) else target.name,
        )
