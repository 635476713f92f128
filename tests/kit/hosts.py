"""Things of the host that take root to make: block devices, and small file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.tools import find_tool


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A block device over ``file``, whose size is a multiple of 512; skips where there is none."""
    tool = find_tool("losetup")
    if tool is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("loop devices take losetup and root")
    made = _run(tool, "--find", "--show", str(file))
    if made.returncode:
        pytest.skip(f"this machine gives no loop devices: {made.stderr.strip()}")
    name = made.stdout.strip()
    try:
        yield Path(name)
    finally:
        _run(tool, "-d", name)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A directory with room for ``size`` bytes; skips where nothing can be mounted."""
    tool = find_tool("mount")
    if tool is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting takes root")
    folder.mkdir()
    made = _run(tool, "-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    if made.returncode:
        pytest.skip(f"this machine mounts nothing: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        _run(find_tool("umount") or "umount", "-l", str(folder))


@contextmanager
def xfs_disk(folder: Path) -> Iterator[Path]:
    """A directory on an XFS of its own; skips where none can be mounted."""
    mkfs, mount = find_tool("mkfs.xfs"), find_tool("mount")
    if mkfs is None or mount is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("an XFS takes root, and mkfs.xfs")
    disk = folder.with_suffix(".img")
    with open(disk, "wb") as file:
        file.truncate(320 << 20)
    folder.mkdir()
    made = _run(mkfs, "-q", str(disk))
    if not made.returncode:
        made = _run(mount, "-o", "loop", str(disk), str(folder))
    if made.returncode:
        pytest.skip(f"this machine mounts no XFS: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        _run(find_tool("umount") or "umount", "-l", str(folder))
