"""What the tests ask of an ext4 file system that lies somewhere in a raw file."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.kit.tools import require_tool


def fsck(path: Path, offset: int = 0) -> tuple[int, str]:
    """Check the file system without changing it: e2fsck's exit status, and what it printed.

    The status is 0 if the file system is clean.
    """
    done = subprocess.run(
        [require_tool("e2fsck"), "-fn", f"{path}?offset={offset}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def cat(path: Path, name: str, offset: int = 0) -> bytes:
    """Return the contents of the file called ``name``, an absolute path on the file system."""
    done = subprocess.run(
        [require_tool("debugfs"), "-R", f'cat "{name}"', f"{path}?offset={offset}"],
        capture_output=True,
        check=True,
    )
    complaints = done.stderr.splitlines()[1:]  # the first line is the program's version
    if complaints:
        raise FileNotFoundError(b"\n".join(complaints).decode())
    return done.stdout
