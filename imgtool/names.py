"""What users call files: a path, with or without ``file:`` in front of it."""

from __future__ import annotations

import os
import re

from imgtool.errors import BadOption

_LIKE_A_PROTOCOL = r"([A-Za-z][A-Za-z0-9+.-]*):"

#: What QEMU takes for a place elsewhere, so that nobody expects a file of that name.
_PROTOCOLS = frozenset(
    (
        *("blkdebug", "blkverify", "fat", "fd", "ftp", "ftps", "gluster", "host_cdrom"),
        *("host_device", "http", "https", "iscsi", "iser", "nbd", "nfs", "nvme", "rbd", "ssh"),
    )
)


def file_path(name: str) -> str:
    """Return the path that the user's ``name`` stands for: ``file:`` in front of it is dropped.

    Raises :class:`BadOption` for ``json:`` and URLs, which are no paths, and for names that no
    file can have.
    """
    check_name(name)
    if name.startswith("file:") and not name.startswith("file://"):
        return name[len("file:") :]
    protocol, colon, rest = name.partition(":")
    if colon and (
        protocol == "json"
        or protocol in _PROTOCOLS
        or (rest.startswith("//") and "/" not in protocol)
    ):
        raise BadOption(
            f"'{name}' is not the path of a file; one that has such a name is './{name}'"
        )
    return name


def check_name(name: str) -> None:
    """Raise :class:`BadOption` for a name with characters that the host's file names cannot have.

    Such a name comes from JSON or from Python; the host's own functions raise ``ValueError``.
    """
    try:
        valid = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise BadOption(f"{name!a} has a character that the name of a file cannot have")


def recorded_path(name: str) -> str:
    """Return what an image records for the file that the user calls ``name``: mostly just that.

    A relative path that begins like a protocol would be taken for one by whoever opens the image.
    """
    protocol = re.match(_LIKE_A_PROTOCOL, name)
    if protocol is None or protocol[1] in _PROTOCOLS or protocol[1] in ("file", "json"):
        return name
    return name if name[protocol.end() :].startswith("//") or os.name == "nt" else f"./{name}"


def identity_of(path: str) -> tuple[int, int] | None:
    """What tells the file at ``path``, links followed, from others; None if there is none.

    It is the ``identity`` that its storage has.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def same_file(first: str, second: str) -> bool:
    """Whether two paths lead, links followed, to one file, existing or yet to be made."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
