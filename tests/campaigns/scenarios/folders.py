"""The files that commands are run on, made in a folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import imgtool
from imgtool import OpenPolicy, Trust
from tests.kit import qcow2 as layout

KiB, MiB = 1 << 10, 1 << 20
SIZE = MiB
ANY = OpenPolicy(Trust.ANY)
PASSWORD = "open sesame"
SECRET = ("--object", f"secret,id=sec0,data={PASSWORD}")

#: Few iterations, so that unlocking takes no time.
FAST = {"iter_time": 10}


def noise(seed: int, length: int = SIZE) -> bytes:
    """Bytes that compress badly, and differ from seed to seed in every sector."""
    return random.Random(seed).randbytes(length)


def make(path: Path, *, size: int = SIZE, seed: int = 1, **options: object) -> None:
    """Make an image that holds data, zeros and holes in pieces of all sizes."""
    imgtool.create(path, size, policy=ANY, **options)  # type: ignore[arg-type]
    fill(path, seed, password=options.get("password"), format=options.get("format"))


def fill(path: Path, seed: int, *, password: object = None, format: object = None) -> None:
    """Write noise over about half of a disk."""
    chance = random.Random(seed)
    name = str(format or ("raw" if path.suffix == ".raw" else "qcow2"))
    with imgtool.open(
        path, format=name, writable=True, password=str(password) if password else None, policy=ANY
    ) as disk:
        for _ in range(8):
            offset = chance.randrange(0, disk.size, 512)
            length = min(chance.choice((512, 4096, 70 * KiB, 200 * KiB)), disk.size - offset)
            disk.write_at(offset, noise(chance.randrange(1 << 30), length))
        disk.write_zeroes(disk.size // 4, disk.size // 8)


def one(name: str = "a.qcow2", **options: object) -> Callable[[Path], None]:
    """A folder with one image."""
    return lambda folder: make(folder / name, **options)  # type: ignore[arg-type]


def overlay(
    *, base_format: str = "qcow2", base_size: int = SIZE, **options: object
) -> Callable[[Path], None]:
    """A folder with an image on top of another."""

    def build(folder: Path) -> None:
        base = "base.raw" if base_format == "raw" else "base.qcow2"
        make(folder / base, seed=2, size=base_size, format=base_format)
        make(
            folder / "a.qcow2",
            backing_file=base,
            backing_format=base_format,
            **options,  # type: ignore[arg-type]
        )

    return build


def with_snapshots(**options: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        path = folder / "a.qcow2"
        make(path, **options)  # type: ignore[arg-type]
        for number in (1, 2):
            imgtool.create_snapshot(path, f"s{number}")
            fill(path, 10 + number)

    return build


def with_bitmaps(**options: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        path = folder / "a.qcow2"
        make(path, **options)  # type: ignore[arg-type]
        imgtool.bitmap(path, "one", "add", granularity=4096)
        fill(path, 3)
        imgtool.bitmap(path, "two", "add")
        fill(path, 4)

    return build


def refcount_block(image: bytes | bytearray) -> int:
    """Where the first refcounts of an image lie."""
    table = int.from_bytes(image[48:56], "big")
    return int.from_bytes(image[table : table + 8], "big")


def leaking(folder: Path) -> None:
    """An image in which clusters are counted that nothing uses."""
    path = folder / "a.qcow2"
    make(path, cluster_size=4096)
    data = bytearray(path.read_bytes())
    block = refcount_block(data)
    for number in range(600, 640):
        data[block + 2 * number : block + 2 * number + 2] = b"\0\1"
    path.write_bytes(data.ljust(640 * 4096, b"\xaa"))


def miscounted(folder: Path) -> None:
    """An image in which clusters in use are counted as free, or twice."""
    path = folder / "a.qcow2"
    make(path, cluster_size=4096)
    data = bytearray(path.read_bytes())
    block = refcount_block(data)
    for number in range(5, 60):
        data[block + 2 * number : block + 2 * number + 2] = b"\0\0" if number % 2 else b"\0\2"
    path.write_bytes(data)


def dirty(folder: Path) -> None:
    """An image that was not closed properly, with lazy refcounts."""
    miscounted(folder)
    path = folder / "a.qcow2"
    data = bytearray(path.read_bytes())
    data[72:80] = layout.DIRTY.to_bytes(8, "big")
    data[80:88] = layout.LAZY_REFCOUNTS.to_bytes(8, "big")
    path.write_bytes(data)


def sources(folder: Path) -> None:
    """What is converted: an image, and the same as a raw file."""
    make(folder / "a.qcow2", cluster_size=4096)
    imgtool.convert(folder / "a.qcow2", folder / "a.raw")


def sources_and_target(target: str, **options: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        sources(folder)
        make(folder / target, seed=9, **options)  # type: ignore[arg-type]

    return build


def chain_and_base(folder: Path) -> None:
    overlay()(folder)
    make(folder / "new.qcow2", seed=20)


def sources_and_base(folder: Path) -> None:
    sources(folder)
    imgtool.convert(folder / "a.raw", folder / "base.qcow2", source_format="raw")
    fill(folder / "a.qcow2", 30)


def empty_spots(**options: object) -> Callable[[Path], None]:
    """An image that holds zeros as data, and clusters that are free."""

    def build(folder: Path) -> None:
        path = folder / "a.qcow2"
        make(path, **options)  # type: ignore[arg-type]
        with imgtool.open(path, writable=True) as disk:
            disk.write_at(100 * KiB, bytes(300 * KiB))
            disk.write_at(700 * KiB, noise(5, 200 * KiB))
            disk.flush()
            disk.discard(0, 64 * KiB)

    return build
