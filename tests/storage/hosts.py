"""Poorer hosts than the one the tests run on: calls of the platform taken away, one by one."""

from __future__ import annotations

import os

import pytest

from imgtool.storage import holes, locks

posix = pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have such files")

#: All that :func:`without` can take away: what is left is about what Windows has.
BAREST = (
    "preadv",
    "pread",
    "pwrite",
    "SEEK_DATA",
    "SEEK_HOLE",
    "fallocate",
    "posix_fallocate",
    "fdatasync",
    "copy_file_range",
    "O_DIRECT",
    "locks",
    "O_NONBLOCK",
    "O_CLOEXEC",
    "O_NOCTTY",
)


def without(monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    """Take away calls of :mod:`os` by name, or ``fallocate``, or ``locks``."""
    for call in calls:
        if call == "fallocate":
            monkeypatch.setattr(holes, "system_fallocate", lambda: None)
        elif call == "locks":
            monkeypatch.setattr(locks, "system_locks", lambda: None)
        else:
            monkeypatch.delattr(os, call, raising=False)
