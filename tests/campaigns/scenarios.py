"""Command lines that change images, and what must be true of the images however they end.

A scenario makes its files in a folder and names one command to be run there. Between beginning and
end every sector holds what it held before or what it is to hold; what is shown by images whose
contents the command does not change stays throughout; a new file is whole or is no image.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Image:
    """A file that a scenario leaves: ``made`` by the command, or ``changed``, or ``kept``.

    ``kept`` is said of what its disk shows. ``broken`` images were damaged before, so that they
    are asked to pass a check only when they have been repaired; what ``random`` ones hold differs
    each time.
    """

    name: str
    format: str = "qcow2"
    fate: str = "changed"
    password: str | None = None
    broken: bool = False
    random: bool = False


@dataclass(frozen=True)
class Scenario:
    """One command line, the files that it needs, and the images to judge afterwards."""

    name: str
    build: Callable[[Path], None]
    command: tuple[str, ...]
    images: tuple[Image, ...] = ()

    @property
    def subcommand(self) -> str:
        """What of imgtool it runs."""
        return self.command[0]

    @property
    def stages(self) -> list[tuple[str, ...]]:
        """The command cut off behind each of its steps but the last, where it has several."""
        ends = [at for at, word in enumerate(self.command) if word == "-c"]
        if self.subcommand != "io":
            return []
        rest = self.command[ends[-1] + 2 :]
        return [(*self.command[:end], *rest) for end in ends[1:]]

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return not self.images


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


#: Guest writes of every kind, on a disk of 1 MiB.
_WRITES = (
    "write -P 0x41 0 4k", "write -P 0x42 1536 100k", "flush", "write -z 200k 64k",
    "write -P 0x43 210k 8k", "write -z -u 300k 128k", "discard 512k 128k", "flush",
    "write -P 0x44 600k 64k", "write -P 0x45 1000k 24k", "write -P 0x46 400k 512",
)  # fmt: skip


def io(*lines: str, image: tuple[str, ...] = ("-f", "qcow2", "a.qcow2")) -> tuple[str, ...]:
    """The command line of ``io`` that carries out ``lines``."""
    return ("io", "--trust", *(word for line in lines for word in ("-c", line)), *image)


def _writes() -> Iterator[Scenario]:
    changed = (Image("a.qcow2"),)
    geometries: dict[str, dict[str, object]] = {
        "512": {"cluster_size": 512},
        "4k": {"cluster_size": 4096},
        "64k": {},
        "2M": {"cluster_size": 2 * MiB},
        "extended": {"extended_l2": True, "cluster_size": 16384},
        "v2": {"compat": "0.10", "cluster_size": 4096},
        "refcount1": {"refcount_bits": 1, "cluster_size": 4096},
        "lazy": {"lazy_refcounts": True, "cluster_size": 4096},
    }
    for name, options in geometries.items():
        yield Scenario(f"write-{name}", one(**options), io(*_WRITES), changed)
    yield Scenario(
        "write-overlay",
        overlay(cluster_size=4096),
        io(*_WRITES),
        (Image("a.qcow2"), Image("base.qcow2", fate="kept")),
    )
    yield Scenario("write-snapshots", with_snapshots(cluster_size=4096), io(*_WRITES), changed)
    yield Scenario("write-bitmaps", with_bitmaps(cluster_size=4096), io(*_WRITES), changed)
    yield Scenario("write-dirty", dirty, io(*_WRITES), (Image("a.qcow2", broken=True),))
    yield Scenario(
        "write-data-file", one(data_file="a.data", cluster_size=4096), io(*_WRITES), changed
    )
    yield Scenario(
        "write-raw-data-file",
        one(data_file="a.data", data_file_raw=True, cluster_size=4096),
        io(*_WRITES),
        changed,
    )
    yield Scenario(
        "write-compressed",
        one(cluster_size=65536),
        io("write -c -P 7 0 128k", "write -P 8 70k 512", "write -c -P 9 512k 256k", "flush"),
        changed,
    )
    yield Scenario(
        "write-through", one(cluster_size=4096), (*io(*_WRITES), "-t", "writethrough"), changed
    )
    yield Scenario(
        "write-raw",
        one("a.raw", format="raw"),
        io(*_WRITES, image=("-f", "raw", "a.raw")),
        (Image("a.raw", "raw"),),
    )
    yield Scenario(
        "write-luks",
        one("a.luks", format="luks", password=PASSWORD, **FAST),
        io(
            *_WRITES,
            image=(*SECRET, "--image-opts", "driver=luks,file.filename=a.luks,key-secret=sec0"),
        ),
        (Image("a.luks", "luks", password=PASSWORD),),
    )
    yield Scenario(
        "write-encrypted",
        one(cluster_size=4096, password=PASSWORD, encrypt_iter_time=10),
        io(
            *_WRITES,
            image=(
                *SECRET,
                "--image-opts",
                "driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=sec0",
            ),
        ),
        (Image("a.qcow2", password=PASSWORD),),
    )


def _changes() -> Iterator[Scenario]:
    changed = (Image("a.qcow2"),)
    small = one(cluster_size=4096)
    yield Scenario("resize-grow", small, ("resize", "a.qcow2", "3M"), changed)
    yield Scenario("resize-grow-far", one(cluster_size=512), ("resize", "a.qcow2", "40M"), changed)
    yield Scenario(
        "resize-preallocate",
        small,
        ("resize", "--preallocation", "full", "a.qcow2", "1500k"),
        changed,
    )
    yield Scenario("resize-shrink", small, ("resize", "--shrink", "a.qcow2", "300k"), changed)
    yield Scenario(
        "resize-bitmaps", with_bitmaps(cluster_size=4096), ("resize", "a.qcow2", "3M"), changed
    )
    yield Scenario(
        "resize-raw",
        one("a.raw", format="raw"),
        ("resize", "-f", "raw", "--preallocation", "full", "a.raw", "1500k"),
        (Image("a.raw", "raw"),),
    )
    shared = with_snapshots(cluster_size=4096)
    yield Scenario("snapshot-first", small, ("snapshot", "-c", "s3", "a.qcow2"), changed)
    yield Scenario("snapshot-create", shared, ("snapshot", "-c", "s3", "a.qcow2"), changed)
    yield Scenario("snapshot-apply", shared, ("snapshot", "-a", "s1", "a.qcow2"), changed)
    yield Scenario("snapshot-delete", shared, ("snapshot", "-d", "s1", "a.qcow2"), changed)
    marked = with_bitmaps(cluster_size=4096)
    for name, words in {
        "add": ("--add", "a.qcow2", "three"),
        "remove": ("--remove", "a.qcow2", "one"),
        "clear": ("--clear", "a.qcow2", "one"),
        "disable": ("--disable", "a.qcow2", "one"),
        "merge": ("--merge", "two", "a.qcow2", "one"),
    }.items():
        yield Scenario(f"bitmap-{name}", marked, ("bitmap", *words), changed)
    yield Scenario(
        "commit",
        overlay(cluster_size=4096),
        ("commit", "-q", "a.qcow2"),
        (Image("a.qcow2", fate="kept"), Image("base.qcow2")),
    )
    yield Scenario(
        "commit-raw",
        overlay(base_format="raw", base_size=SIZE // 2),
        ("commit", "-q", "a.qcow2"),
        (Image("a.qcow2", fate="kept"), Image("base.raw", "raw")),
    )
    kept = (Image("a.qcow2", fate="kept"),)
    yield Scenario(
        "rebase", chain_and_base, ("rebase", "-b", "new.qcow2", "-F", "qcow2", "a.qcow2"), kept
    )
    yield Scenario("rebase-flatten", overlay(), ("rebase", "-b", "", "a.qcow2"), kept)
    yield Scenario(
        "rebase-unsafe",
        overlay(),
        ("rebase", "-u", "-b", "./base.qcow2", "-F", "qcow2", "a.qcow2"),
        kept,
    )
    for name, options, value in (
        ("downgrade", {"cluster_size": 4096}, "compat=0.10"),
        ("upgrade", {"compat": "0.10"}, "compat=1.1"),
        ("wider", {"cluster_size": 4096}, "refcount_bits=64"),
        ("lazy", {}, "lazy_refcounts=on"),
    ):
        yield Scenario(f"amend-{name}", one(**options), ("amend", "-o", value, "a.qcow2"), kept)
    broken = (Image("a.qcow2", fate="kept", broken=True),)
    yield Scenario("repair-leaks", leaking, ("check", "-q", "-r", "leaks", "a.qcow2"), broken)
    yield Scenario("repair-all", miscounted, ("check", "-q", "-r", "all", "a.qcow2"), broken)
    yield Scenario("repair-dirty", dirty, ("check", "-q", "-r", "all", "a.qcow2"), broken)
    yield Scenario("compact", empty_spots(cluster_size=4096), ("compact", "-q", "a.qcow2"), kept)
    yield Scenario(
        "compact-raw",
        one("a.raw", format="raw"),
        ("compact", "-q", "-f", "raw", "a.raw"),
        (Image("a.raw", "raw", "kept"),),
    )
    yield Scenario(
        "compact-into", empty_spots(), ("compact", "-q", "-o", "a.qcow2", "a.qcow2"), kept
    )


def _new_files() -> Iterator[Scenario]:
    def nothing(folder: Path) -> None:
        return None

    made = (Image("new.qcow2", fate="made"),)
    for name, words in {
        "plain": (),
        "metadata": ("-o", "preallocation=metadata,cluster_size=4k"),
        "full": ("-o", "preallocation=full"),
        "data-file": ("-o", "data_file=new.data"),
    }.items():
        yield Scenario(
            f"create-{name}",
            nothing,
            ("create", "-q", "-f", "qcow2", *words, "new.qcow2", "1M"),
            made,
        )
    yield Scenario(
        "create-over", one("new.qcow2"), ("create", "-q", "-f", "qcow2", "new.qcow2", "2M"), made
    )
    yield Scenario(
        "create-on-base",
        one("base.qcow2"),
        ("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "new.qcow2"),
        (*made, Image("base.qcow2", fate="kept")),
    )
    yield Scenario(
        "create-raw",
        nothing,
        ("create", "-q", "-o", "preallocation=full", "new.raw", "1M"),
        (Image("new.raw", "raw", "made"),),
    )
    yield Scenario(
        "create-luks",
        nothing,
        (
            *("create", "-q", "-f", "luks", *SECRET),
            "-o",
            "key-secret=sec0,iter-time=10",
            "new.luks",
            "1M",
        ),
        (Image("new.luks", "luks", "made", PASSWORD, random=True),),
    )
    for name, target, words in (
        ("qcow2", "new.qcow2", ("-O", "qcow2")),
        ("compressed", "new.qcow2", ("-c", "-O", "qcow2")),
        ("durable", "new.qcow2", ("-O", "qcow2", "-t", "writeback")),
        ("raw", "new.raw", ("-O", "raw")),
        ("offload", "new.raw", ("-C", "-O", "raw")),
    ):
        image = Image(target, "raw" if target.endswith("raw") else "qcow2", "made")
        yield Scenario(
            f"convert-{name}", sources, ("convert", "-q", *words, "a.qcow2", target), (image,)
        )
    for name, target, form, options in (
        ("luks", "new.luks", "luks", "key-secret=sec0,iter-time=10"),
        (
            "encrypted",
            "new.qcow2",
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10",
        ),
    ):
        yield Scenario(
            f"convert-{name}",
            sources,
            ("convert", "-q", *SECRET, "-O", form, "-o", options, "a.qcow2", target),
            (Image(target, form, "made", PASSWORD),),
        )
    yield Scenario(
        "convert-on-base",
        sources_and_base,
        ("convert", "-q", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "a.qcow2", "new.qcow2"),
        made,
    )
    yield Scenario(
        "convert-over",
        sources_and_target("new.qcow2"),
        ("convert", "-q", "-O", "qcow2", "a.qcow2", "new.qcow2"),
        made,
    )
    yield Scenario(
        "convert-into",
        sources_and_target("old.qcow2", cluster_size=4096),
        ("convert", "-q", "-n", "-O", "qcow2", "a.qcow2", "old.qcow2"),
        (Image("old.qcow2"),),
    )
    yield Scenario(
        "convert-into-raw",
        sources_and_target("old.raw", format="raw"),
        ("convert", "-q", "-n", "-O", "raw", "a.qcow2", "old.raw"),
        (Image("old.raw", "raw"),),
    )
    yield Scenario(
        "dd",
        sources,
        ("dd", "-f", "raw", "-O", "qcow2", "bs=64k", "if=a.raw", "of=new.qcow2"),
        made,
    )
    yield Scenario(
        "dd-raw",
        sources,
        ("dd", "-f", "qcow2", "-O", "raw", "if=a.qcow2", "of=new.raw"),
        (Image("new.raw", "raw", "made"),),
    )


def _readers() -> Iterator[Scenario]:
    for name, build, words in (
        ("info", overlay(), ("info", "--backing-chain", "a.qcow2")),
        ("info-snapshots", with_snapshots(), ("info", "a.qcow2")),
        ("map", overlay(cluster_size=4096), ("map", "--output", "json", "a.qcow2")),
        ("check", with_snapshots(cluster_size=4096), ("check", "a.qcow2")),
        ("compare", sources, ("compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "a.raw")),
        ("compare-unlike", chain_and_base, ("compare", "a.qcow2", "new.qcow2")),
        ("hash", overlay(), ("hash", "a.qcow2")),
        ("hash-raw", one(cluster_size=4096), ("hash", "--raw", "a.qcow2")),
        ("measure", overlay(), ("measure", "-O", "qcow2", "a.qcow2")),
        ("snapshot-list", with_snapshots(), ("snapshot", "-l", "a.qcow2")),
        ("bitmap-list", with_bitmaps(), ("bitmap", "--list", "a.qcow2", "one")),
        (
            "read",
            overlay(cluster_size=4096),
            ("io", "-r", "-c", "read -q 0 1M", "-c", "map", "-f", "qcow2", "a.qcow2"),
        ),
    ):
        yield Scenario(name, build, words)


#: Every scenario, by name: those that change something first.
SCENARIOS = {
    scenario.name: scenario
    for part in (_writes(), _changes(), _new_files(), _readers())
    for scenario in part
}
CHANGING = {name: one for name, one in SCENARIOS.items() if not one.reads}
READING = {name: one for name, one in SCENARIOS.items() if one.reads}
