"""Make a raw guest disk out of the machine's own files, without root, mounts or loop devices.

The disk has a partition table and one ext4 partition. As a program, from the top of the checkout:

    python -m tests.guest.make_guest --size 1G --content 400M guest.raw
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.tools import find_tool

#: The programs that :func:`make_guest` runs.
TOOLS = ("sfdisk", "mke2fs")

SEED_DIRS = (Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share"))

#: A seed file larger than this share of the content is left out: one file shall not be the disk.
LARGEST_SHARE = 16

#: Where the partition begins, and what is kept free behind it for the second GPT.
ALIGNMENT = 1 << 20

#: How much of the disk does not compress, whatever the seed files are.
NOISE = 4 << 20

#: Fixed, so that two disks of the same files differ in the times of their inodes at most.
UUID = "6f1c0de5-0000-4000-8000-000000000001"
EPOCH = "1700000000"

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Guest:
    """A raw guest disk, and where on it the bytes of its ext4 file system lie."""

    path: Path
    size: int
    offset: int
    length: int


def make_guest(
    path: Path,
    *,
    size: int = 1 << 30,
    content: int = 400 << 20,
    seed_dirs: Sequence[Path] = SEED_DIRS,
    table: str = "gpt",
) -> Guest:
    """Make the sparse raw disk ``path`` of ``size`` bytes and put ``content`` bytes of files on it.

    ``table`` is ``gpt`` or ``dos``. The files are copies of those in ``seed_dirs``, taken in turn
    and in sorted order, beginning anew when they run out.
    """
    length = (size // ALIGNMENT - 2) * ALIGNMENT
    if length < content:
        raise ValueError(f"A disk of {size} bytes has no room for {content} bytes of files")
    with open(path, "wb") as disk:
        disk.truncate(size)
    partition(path, length, table)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=path.parent) as staging:
        fill(Path(staging), content, seed_dirs)
        make_ext4(path, length, Path(staging))
    return Guest(path, size, ALIGNMENT, length)


def partition(path: Path, length: int, table: str) -> None:
    """Write a partition table with one Linux partition of ``length`` bytes."""
    label_id = UUID if table == "gpt" else "0x6f1c0de5"
    entry = f"start={ALIGNMENT // 512}, size={length // 512}"
    if table == "gpt":
        entry += f", uuid={UUID}"
    run_tool(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(path)],
        stdin=f"label: {table}\nlabel-id: {label_id}\n{entry}\n",
    )


def make_ext4(path: Path, length: int, root: Path) -> None:
    """Make an ext4 file system in the partition, with the files under ``root`` on it."""
    options = f"offset={ALIGNMENT},root_owner=0:0,hash_seed={UUID},lazy_itable_init=1"
    identity = ["-L", "guest", "-U", UUID]
    target = [str(path), f"{length >> 10}k"]
    run_tool(
        ["mke2fs", "-q", "-F", "-t", "ext4", *identity, "-E", options, "-d", str(root), *target]
    )


def run_tool(command: list[str], stdin: str = "") -> None:
    """Run one of :data:`TOOLS`."""
    program = find_tool(command[0])
    if program is None:
        raise FileNotFoundError(f"{command[0]} is needed to make a guest disk")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "E2FSPROGS_FAKE_TIME": EPOCH}
    done = subprocess.run(
        [program, *command[1:]], input=stdin, text=True, capture_output=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


def fill(root: Path, content: int, seed_dirs: Sequence[Path]) -> None:
    """Put about ``content`` bytes of files under ``root``: noise, then copies of seed files."""
    noise = min(NOISE, content)
    (root / "noise.bin").write_bytes(random.Random(UUID).randbytes(noise))
    missing = content - noise
    for source, name in seed_files(seed_dirs, content // LARGEST_SHARE):
        if missing <= 0:
            return
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        missing -= target.stat().st_size


def seed_files(seed_dirs: Sequence[Path], largest: int) -> Iterator[tuple[Path, Path]]:
    """Go round the seed directories without end: each file, and its name on the guest's disk."""
    for turn in itertools.count():
        found = False
        for group in itertools.zip_longest(*(walk(folder, largest) for folder in seed_dirs)):
            for source in filter(None, group):
                found = True
                yield source, Path(str(turn)) / source.relative_to("/")
        if not found:
            raise ValueError(f"No readable files in {', '.join(map(str, seed_dirs))}")


def walk(folder: Path, largest: int) -> Iterator[Path]:
    """Give the readable regular files below ``folder`` in sorted order, links not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path).absolute()
        if entry.is_dir(follow_symlinks=False):
            yield from walk(path, largest)
        elif (
            entry.is_file(follow_symlinks=False)
            and 0 < entry.stat(follow_symlinks=False).st_size <= largest
            and os.access(path, os.R_OK)
        ):
            yield path


def parse_size(text: str) -> int:
    """Read a number of bytes with an optional suffix K, M or G."""
    unit = UNITS.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


def main() -> None:
    """Make a guest disk as the command line says."""
    parser = argparse.ArgumentParser(description="Make a raw guest disk from this machine's files.")
    parser.add_argument("path", type=Path, help="the raw file to write")
    parser.add_argument("--size", type=parse_size, default="1G", help="size of the disk")
    parser.add_argument("--content", type=parse_size, default="400M", help="how much to put on it")
    parser.add_argument("--table", choices=("gpt", "dos"), default="gpt", help="partition table")
    parser.add_argument(
        "--seed-dir", type=Path, action="append", help="take files from here (repeatable)"
    )
    arguments = parser.parse_args()
    guest = make_guest(
        arguments.path,
        size=arguments.size,
        content=arguments.content,
        seed_dirs=arguments.seed_dir or SEED_DIRS,
        table=arguments.table,
    )
    print(f"{guest.path}: ext4 at {guest.offset}, {guest.length} bytes")


if __name__ == "__main__":
    main()
