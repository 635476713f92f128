"""The images that the rows work on, each made when it is first asked for, by qemu's own tools."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.guest.make_guest import make_guest
from tests.kit.tools import find_tool

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


@dataclass(frozen=True)
class Scale:
    """How large everything is, in bytes, and how often it is done."""

    name: str
    #: The guest's disk, and how much is on it.
    disk: int
    content: int
    #: A smaller guest, for what takes qemu-img minutes and for what is copied before each run.
    small_disk: int
    small_content: int
    #: How much of the small guest an overlay changes.
    changed: int
    #: The virtual size of the image with all its metadata allocated.
    table: int
    #: Many small images.
    images: int
    #: An image without a hole, and how many random reads are made of it.
    dense: int
    reads: int
    #: How often a command that takes milliseconds is called in one run.
    batch: int
    runs: int
    warm_ups: int
    #: Whether each run waits for what was written before it, and for memory that is ready.
    settle: bool = True


FULL = Scale(
    name="full",
    disk=8 * GIB,
    content=3 * GIB,
    small_disk=4 * GIB,
    small_content=GIB,
    changed=GIB,
    table=TIB,
    images=1000,
    dense=GIB,
    reads=100_000,
    batch=10,
    runs=5,
    warm_ups=1,
)
QUICK = Scale(
    name="quick",
    disk=2 * GIB,
    content=384 * MIB,
    small_disk=512 * MIB,
    small_content=64 * MIB,
    changed=128 * MIB,
    table=512 * GIB,
    images=100,
    dense=256 * MIB,
    reads=20_000,
    batch=5,
    runs=2,
    warm_ups=0,
    settle=False,
)

#: An overlay's changes are spread over the disk in pieces of this size.
PIECE = MIB


def tool(name: str) -> str:
    """Return the path of the program called ``name``; raise FileNotFoundError if there is none."""
    path = find_tool(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed")
    return path


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, outside any timing, and return what it printed."""
    command = [tool("qemu-img"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


class Inputs:
    """The images, in a folder of their own below ``folder``: what is there already is used."""

    def __init__(self, folder: Path, scale: Scale, say: Callable[[str], None] = print) -> None:
        self.scale = scale
        self.folder = folder / scale.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._say = say

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the file ``name``, made by ``make`` under another name if it is not there."""
        path = self.folder / name
        if not path.exists():
            self._say(f"making {path}")
            partial = path.with_name(f"partial-{name}")
            make(partial)
            os.replace(partial, path)
        return path

    def output(self, suffix: str) -> Path:
        """Return the name of a file that a run writes."""
        return self.folder / f"output{suffix}"

    def converted(self, source: Path, name: str, *options: str) -> Path:
        """Return ``source`` as a qcow2 image of this ``name``, made with qemu-img's ``options``."""
        return self.made(
            name,
            lambda path: qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, source, path),
        )

    @property
    def guest_raw(self) -> Path:
        """A guest's disk: ext4, filled from the machine's own files."""
        scale = self.scale
        return self.made(
            "guest.raw", lambda path: make_guest(path, size=scale.disk, content=scale.content)
        )

    @property
    def guest_qcow2(self) -> Path:
        """The guest's disk as qcow2."""
        return self.converted(self.guest_raw, "guest.qcow2")

    @property
    def guest_zlib(self) -> Path:
        """The guest's disk as qcow2, compressed with zlib."""
        return self.converted(self.guest_raw, "guest-zlib.qcow2", "-c")

    @property
    def guest_zstd(self) -> Path:
        """The guest's disk as qcow2, compressed with zstd."""
        options = ("-c", "-o", "compression_type=zstd")
        return self.converted(self.guest_raw, "guest-zstd.qcow2", *options)

    @property
    def small_raw(self) -> Path:
        """A smaller guest's disk."""
        scale = self.scale
        return self.made(
            "small.raw",
            lambda path: make_guest(path, size=scale.small_disk, content=scale.small_content),
        )

    @property
    def small_qcow2(self) -> Path:
        """The smaller guest's disk as qcow2: the base of the overlays."""
        return self.converted(self.small_raw, "small.qcow2")

    @property
    def overlay(self) -> Path:
        """An overlay on :attr:`small_qcow2` with changes all over the disk."""
        return self.made("overlay.qcow2", self._make_overlay)

    @property
    def top(self) -> Path:
        """An empty overlay on :attr:`overlay`."""
        base = self.overlay.name
        return self.made(
            "top.qcow2",
            lambda path: qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", path),
        )

    @property
    def other_base(self) -> Path:
        """:attr:`small_qcow2` with a quarter as much changed as in the overlay, elsewhere."""
        return self.made("other.qcow2", self._make_other_base)

    @property
    def table(self) -> Path:
        """An image that has a cluster for all of its disk, and no data."""
        return self.table_of(self.scale.table)

    def table_of(self, size: int) -> Path:
        """Return an image of ``size`` bytes that has a cluster for all of its disk, and no data."""
        options = ("-f", "qcow2", "-o", "preallocation=metadata")
        return self.made(
            f"table-{size}.qcow2", lambda path: qemu_img("create", *options, path, str(size))
        )

    @property
    def empty(self) -> Path:
        """An empty image of 64 TiB."""
        return self.empty_of(64 * TIB)

    def empty_of(self, size: int) -> Path:
        """Return an empty image of ``size`` bytes."""
        return self.made(
            f"empty-{size}.qcow2",
            lambda path: qemu_img("create", "-f", "qcow2", path, str(size)),
        )

    @property
    def dense_raw(self) -> Path:
        """A raw disk of noise, without a hole."""
        return self.made("dense.raw", lambda path: _write_noise(path, self.scale.dense))

    @property
    def dense_qcow2(self) -> Path:
        """The noise as qcow2."""
        return self.converted(self.dense_raw, "dense.qcow2")

    @property
    def images(self) -> list[Path]:
        """Many small images, in one folder."""
        folder = self.made("images", self._make_images)
        return sorted(folder.iterdir())

    def _make_images(self, folder: Path) -> None:
        model = self.empty_of(10 * GIB)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number in range(self.scale.images):
            shutil.copyfile(model, folder / f"{number:04}.qcow2")

    def _make_overlay(self, path: Path) -> None:
        base = self.small_qcow2.name
        qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
        self._change(path, self.scale.changed, first=0)

    def _make_other_base(self, path: Path) -> None:
        shutil.copyfile(self.small_qcow2, path)
        self._change(path, self.scale.changed // 4, first=PIECE)

    def _change(self, path: Path, amount: int, first: int) -> None:
        """Write ``amount`` bytes of noise into an image, in pieces that lie evenly on its disk."""
        noise = self.made("noise.bin", lambda target: _write_noise(target, PIECE))
        pieces = amount // PIECE
        stride = self.scale.small_disk // pieces // PIECE * PIECE
        writes = (
            f"write -q -s {noise} {first + number * stride} {PIECE}" for number in range(pieces)
        )
        command = [tool("qemu-io"), "-f", "qcow2", str(path)]
        subprocess.run(
            command, input="\n".join(writes), text=True, stdout=subprocess.DEVNULL, check=True
        )


def _write_noise(path: Path, size: int) -> None:
    generator = random.Random(size)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(generator.randbytes(MIB))


def fragmented(inputs: Inputs, clusters: int, cluster: int) -> Path:
    """Return an image with ``clusters`` clusters of ``cluster`` bytes, and a gap behind each."""

    def make_raw(path: Path) -> None:
        data = random.Random(cluster).randbytes(cluster)
        with open(path, "wb") as file:
            for number in range(clusters):
                file.seek(2 * number * cluster)
                file.write(data)
            file.truncate(2 * clusters * cluster)

    raw = inputs.made(f"fragmented-{clusters}.raw", make_raw)
    options = ("-S", "4k", "-o", f"cluster_size={cluster}")
    image = inputs.converted(raw, f"fragmented-{clusters}.qcow2", *options)
    described = json.loads(qemu_img("check", "--output", "json", image))
    if described["allocated-clusters"] != clusters:
        raise RuntimeError(f"{image} has {described['allocated-clusters']} clusters")
    return image
