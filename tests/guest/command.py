"""The commands that the tests run, and what they expect of every image that was written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kit.tools import require_tool

#: The command under test. Everything in this folder runs it through :func:`imgtool_command`.
COMMAND = [sys.executable, "-m", "imgtool"]


def imgtool_command(*arguments: str | Path) -> str:
    """Run imgtool, which shall succeed, and return what it printed."""
    return succeed([*COMMAND, *map(str, arguments)])


def compare(raw: Path, image: Path) -> int:
    """Compare a raw and a qcow2 disk with imgtool: its exit status, 0 if they are the same."""
    command = [*COMMAND, "compare", "-f", "raw", "-F", "qcow2", str(raw), str(image)]
    return subprocess.run(command, capture_output=True).returncode


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, which shall succeed, and return what it printed."""
    return succeed([require_tool("qemu-img"), *map(str, arguments)])


def succeed(command: list[str]) -> str:
    """Run a command; unless it ends with 0, fail with all that it printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def check_clean(image: Path, fmt: str) -> None:
    """Neither imgtool nor qemu-img shall find an error or a leak in an image.

    Raw images, which have nothing to check, are left alone.
    """
    if fmt != "raw":
        imgtool_command("check", "-f", fmt, image)
        qemu_img("check", "-f", fmt, image)
