"""The real tools that tests use: found wherever they are, and asked for in one way.

A tool that is missing fails the test where ``CI`` is set, so that no check is lost unnoticed, and
skips it elsewhere, with the reason.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

#: Where administrators' tools are, which a user's PATH often leaves out.
ADMIN_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))

#: The Debian package of each tool that is not named like its package.
PACKAGES = {
    "7z": "p7zip-full",
    "busybox": "busybox-static",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "sfdisk": "fdisk",
}


def find_tool(name: str) -> str | None:
    """Return the path of the program called ``name``, or None if the machine has none."""
    return shutil.which(name) or shutil.which(name, path=ADMIN_PATH)


def require_tool(name: str) -> str:
    """Return the path of the program called ``name``; without it the test cannot run."""
    path = find_tool(name)
    if path is None:
        package = PACKAGES.get(name, name)
        cannot_run(f"{name} is not installed (Debian package {package}; .ci/apt-tools installs it)")
    return path


def cannot_run(reason: str) -> NoReturn:
    """End a test that lacks something of the machine: fail it in CI, skip it elsewhere."""
    import pytest  # only tests need it: programs look for tools, too

    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
