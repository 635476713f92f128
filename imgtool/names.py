"""What users call files: a path, with or without ``file:`` in front of it."""

from __future__ import annotations

import os

from imgtool.errors import BadOption


def file_path(name: str) -> str:
    """Return the path that the user's ``name`` stands for: ``file:`` in front of it is dropped.

    Raises :class:`BadOption` for ``json:`` and URLs, which are no paths.
    """
    if name.startswith("file:") and not name.startswith("file://"):
        return name[len("file:") :]
    protocol, colon, rest = name.partition(":")
    if colon and (protocol == "json" or (rest.startswith("//") and "/" not in protocol)):
        raise BadOption(f"'{name}' is not the path of a file")
    return name


def same_file(first: str, second: str) -> bool:
    """Whether two paths lead, links followed, to one file, existing or yet to be made."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False
