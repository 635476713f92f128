"""Disks that are really full: every command that writes says so, and can be repeated."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.campaigns.scenarios import CHANGING
from tests.campaigns.workshop import Workshop
from tests.kit.effort import PROFILE
from tests.kit.hosts import loop_device, small_disk
from tests.kit.tools import find_tool, require_tool

#: What needs room on a full disk; resize, rebase -u and the like may find enough in what they have.
_NEEDY = (
    "write-4k", "write-64k", "write-extended", "write-overlay", "write-snapshots", "write-bitmaps",
    "write-raw-data-file", "write-encrypted", "resize-preallocate", "resize-raw",
    "snapshot-create", "snapshot-apply", "snapshot-delete", "bitmap-add", "bitmap-merge",
    "commit", "commit-raw", "rebase", "rebase-flatten", "amend-wider", "amend-downgrade",
    "repair-all", "compact", "compact-into", "create-plain", "create-full", "create-raw",
    "create-luks", "convert-qcow2", "convert-compressed", "convert-durable", "convert-raw",
    "convert-over", "convert-into", "dd", "dd-raw",
)  # fmt: skip


@contextmanager
def formatted(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """A small file system of this kind."""
    if kind == "tmpfs":
        with small_disk(folder / "disk", size) as place:
            yield place
        return
    image, place = folder / "disk.img", folder / "disk"
    with open(image, "wb") as file:
        file.truncate(size if kind == "ext4" else 320 << 20)
    make = {"ext4": ["mke2fs", "-q", "-t", "ext4", "-m", "0"], "xfs": ["mkfs.xfs", "-q"]}[kind]
    with loop_device(image) as device:
        subprocess.run([require_tool(make[0]), *make[1:], str(device)], check=True)
        place.mkdir()
        subprocess.run([find_tool("mount") or "mount", str(device), str(place)], check=True)
        try:
            yield place
        finally:
            subprocess.run([find_tool("umount") or "umount", str(place)], check=True)


def fill(path: Path, room: int) -> None:
    """Leave about ``room`` bytes of the file system for others."""
    free = os.statvfs(path.parent)
    left = free.f_bavail * free.f_frsize - room
    with open(path, "wb") as file:
        while left > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, left)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                left -= 64 << 10  # the file system keeps some for itself


def try_full(kind: str, names: tuple[str, ...], tmp_path: Path, rooms: tuple[int, ...]) -> int:
    """Run the commands with so little room; return how many of them failed for that."""
    failed = 0
    with formatted(tmp_path, kind, 24 << 20) as disk:
        for name in names:
            workshop = Workshop(CHANGING[name], tmp_path / name)
            own = workshop.place
            for room in rooms:
                workshop.place = disk / "place"
                workshop.reset()
                fill(disk / "filler", room)
                outcome = workshop.run()
                assert "Traceback" not in outcome.err, (name, room, outcome)
                if outcome.status:
                    failed += 1
                    told = outcome.err + outcome.out
                    assert "No space left" in told or "Not enough space" in told, (name, outcome)
                    if workshop.scenario.subcommand != "io":
                        assert any(image.name in told for image in workshop.scenario.images), told
                (disk / "filler").unlink()
                try:
                    workshop.judge(finished=not outcome.status)
                    if outcome.status:
                        # With room again, the same command works on what is there now.
                        again = workshop.run()
                        assert not again.status, again
                        workshop.judge(finished=True)
                except AssertionError as error:
                    raise AssertionError(f"{name} with {room} bytes of room: {error}") from error
            workshop.place = own
    return failed


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
def test_commands_on_a_full_disk(kind: str, tmp_path: Path) -> None:
    names, rooms = _NEEDY, (0, 8 << 10, 40 << 10, 100 << 10, 300 << 10)
    if PROFILE == "ci":
        names = names if kind == "tmpfs" else names[:: 3 if kind == "ext4" else 5]
        rooms = rooms[::2]
    failed = try_full(kind, names, tmp_path, rooms)
    # Where blocks can be shared, a copy needs next to no room.
    assert failed > (1 if kind == "xfs" else len(names) // 3)
