"""The undamaged images of the corpus, each told as qemu-img and qemu-io are to make it.

An image lies in a directory of its own, ``image.<format>``, beside the files that it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.compat.workshop import Workshop

Step = Callable[[Workshop, Path], None]

#: Guest writes that leave clusters of every plain kind, in several runs.
MIXED = (
    "write -P 1 0 192k",
    "write -P 2 256k 64k",
    "write -z 320k 128k",
    "write -P 3 448k 4k",
    "write -P 4 1000k 300k",
    "write -z -u 1088k 64k",
    "discard 128k 64k",
    "write -P 5 2047k 1k",
)
#: Compressed clusters of 64 KiB beside plain ones, some of them overwritten.
PACKED = (
    "write -c -P 1 0 64k",
    "write -c -P 2 64k 64k",
    "write -c -P 3 256k 64k",
    "write -P 4 128k 64k",
    "write -P 5 64k 4k",
    "write -z 512k 64k",
    "write -c -P 6 576k 64k",
    "write -c -P 7 640k 64k",
)


@dataclass(frozen=True)
class Recipe:
    """How one image is made: created with ``options``, written to, then taken through ``steps``."""

    name: str
    size: str = "4M"
    options: str = ""
    writes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = field(default=())
    format: str = "qcow2"
    backing: Recipe | None = None

    def build(self, workshop: Workshop, file_name: str | None = None) -> Path:
        """Make the image, its backing chain first, and return its path."""
        path = workshop.directory / (file_name or f"image.{self.format}")
        options = self.options
        if self.backing is not None:
            base = self.backing.build(workshop, f"{self.backing.name}.{self.backing.format}")
            backed = f"backing_file={base.name},backing_fmt={self.backing.format}"
            options = f"{options},{backed}" if options else backed
        workshop.create(path, self.format, self.size, options)
        workshop.io(path, self.format, *self.writes)
        for step in self.steps:
            step(workshop, path)
        return path


def io(*commands: str) -> Step:
    """Write to the image, in a process of its own."""
    return lambda workshop, path: workshop.io(path, "qcow2", *commands)


def img(*arguments: str) -> Step:
    """Run qemu-img; ``{}`` stands for the image."""
    return lambda workshop, path: workshop.img(
        *(str(path) if argument == "{}" else argument for argument in arguments)
    )


def snapshot(name: str) -> Step:
    """Take an internal snapshot."""
    return img("snapshot", "-c", name, "{}")


def bitmap(name: str, *arguments: str) -> Step:
    """Add a persistent bitmap."""
    return img("bitmap", "--add", *arguments, "{}", name)


def cut(length: int) -> Step:
    """Cut the host file to ``length`` bytes, from its end if negative."""

    def step(workshop: Workshop, path: Path) -> None:
        with open(path, "r+b") as file:
            size = file.seek(0, 2)
            file.truncate(length if length >= 0 else size + length)

    return step


def thin() -> Step:
    """Make a hole of every 4 KiB of zeros in the host file, as copying tools do."""

    def step(workshop: Workshop, path: Path) -> None:
        data = path.read_bytes()
        with open(path, "wb") as file:
            for start in range(0, len(data), 4096):
                block = data[start : start + 4096]
                if block.strip(b"\0"):
                    file.seek(start)
                    file.write(block)
            file.truncate(len(data))

    return step


def _geometries() -> list[Recipe]:
    recipes = [
        Recipe(f"cluster-{size}", options=f"cluster_size={size}", writes=MIXED)
        for size in ("512", "4k", "16k", "64k", "2M")
    ]
    recipes += [
        Recipe(f"v2-cluster-{size}", options=f"compat=0.10,cluster_size={size}", writes=MIXED)
        for size in ("512", "64k", "2M")
    ]
    recipes += [
        Recipe(f"refcount-{bits}", options=f"refcount_bits={bits},cluster_size=4k", writes=MIXED)
        for bits in (1, 2, 4, 8, 32, 64)
    ]
    recipes += [
        Recipe(f"extended-{size}", options=f"extended_l2=on,cluster_size={size}", writes=MIXED)
        for size in ("16k", "64k", "128k", "2M")
    ]
    recipes += [
        Recipe(
            "refcount-64-extended",
            options="refcount_bits=64,extended_l2=on,cluster_size=32k",
            writes=MIXED,
        ),
        Recipe("lazy", options="lazy_refcounts=on", writes=MIXED),
    ]
    return recipes


def _sizes() -> list[Recipe]:
    return [
        Recipe("empty"),
        Recipe("empty-v2", options="compat=0.10"),
        Recipe("no-size", size="0"),
        Recipe("one-sector", size="512", writes=("write -P 1 0 512",)),
        Recipe("unaligned", size="1049088", writes=("write -P 1 1M 512", "write -P 2 0 100k")),
        Recipe("unaligned-zero", size="1049088", writes=("write -z 1M 512",)),
        Recipe(
            "unaligned-small-clusters",
            size="1000960",
            options="cluster_size=4k",
            writes=("write -P 1 977k 512", "write -P 2 0 100k"),
        ),
        Recipe(
            "large-sparse",
            size="64T",
            writes=("write -P 1 0 64k", "write -P 2 32T 64k", "write -P 3 70368744112128 64k"),
        ),
        Recipe(
            "many-l2-tables",
            size="16M",
            options="cluster_size=512",
            writes=("write -P 1 0 200k", "write -P 2 8M 300k", "write -P 3 15M 1M"),
        ),
        Recipe(
            "scattered",
            size="16M",
            options="cluster_size=4k",
            writes=tuple(f"write -P {i + 1} {i * 7919 % 4096 * 4}k 4k" for i in range(60)),
        ),
        Recipe("ends-early", writes=MIXED, steps=(cut(-65024),)),
        Recipe(
            "grown", writes=MIXED, steps=(img("resize", "-q", "{}", "1G"), io("write -P 9 900M 1M"))
        ),
        Recipe(
            "shrunk",
            size="64M",
            writes=("write -P 1 0 128k", "write -P 2 40M 128k"),
            steps=(img("resize", "-q", "--shrink", "{}", "8M"),),
        ),
    ]


def _compressed() -> list[Recipe]:
    spread = tuple(f"write -c -P {i + 1} {i * 4}k 4k" for i in range(40))
    return [
        Recipe("zlib", writes=PACKED),
        Recipe("zlib-v2", options="compat=0.10", writes=PACKED),
        Recipe("zstd", options="compression_type=zstd", writes=PACKED),
        Recipe("zlib-extended", options="extended_l2=on", writes=PACKED),
        Recipe("zstd-extended", options="extended_l2=on,compression_type=zstd", writes=PACKED),
        Recipe("zlib-4k", options="cluster_size=4k", writes=spread),
        Recipe("zlib-4k-refcount-8", options="cluster_size=4k,refcount_bits=8", writes=spread),
        Recipe(
            "zlib-512",
            size="256k",
            options="cluster_size=512",
            writes=tuple(f"write -c -P {i + 1} {i * 512} 512" for i in range(30)),
        ),
        Recipe(
            "zlib-2M",
            size="16M",
            options="cluster_size=2M",
            writes=("write -c -P 1 0 2M", "write -c -P 2 4M 2M", "write -P 3 6M 1M"),
        ),
        Recipe("zlib-snapshot", writes=PACKED, steps=(snapshot("one"), io("write -P 9 0 128k"))),
        Recipe(
            "zlib-unaligned", size="100k", writes=("write -c -P 1 0 64k", "write -c -P 2 64k 36k")
        ),
    ]


def _chains() -> list[Recipe]:
    base = Recipe("base", writes=MIXED)
    raw = Recipe(
        "base", format="raw", size="2M", writes=("write -P 7 64k 64k", "write -P 8 1M 70k")
    )
    middle = Recipe("middle", writes=("write -P 9 192k 64k", "write -z 1M 64k"), backing=base)
    overlay = ("write -P 10 64k 32k", "write -z 448k 64k", "write -P 11 3M 64k")
    return [
        Recipe("overlay-empty", backing=base),
        Recipe("overlay", writes=overlay, backing=base),
        Recipe("overlay-v2", options="compat=0.10", writes=overlay, backing=base),
        Recipe(
            "overlay-discard", writes=(*overlay, "discard 64k 128k", "discard 3M 64k"), backing=base
        ),
        Recipe("overlay-larger", size="9M", writes=(*overlay, "write -P 12 8M 64k"), backing=base),
        Recipe("overlay-smaller", size="1M", writes=overlay[:2], backing=base),
        Recipe(
            "overlay-unaligned-base",
            size="4M",
            writes=("write -P 1 3M 4k",),
            backing=Recipe("base", size="1049088", writes=("write -P 2 1000k 24k",)),
        ),
        Recipe("overlay-extended", options="extended_l2=on", writes=overlay, backing=base),
        Recipe(
            "overlay-on-extended",
            writes=overlay,
            backing=Recipe("base", options="extended_l2=on,cluster_size=128k", writes=MIXED),
        ),
        Recipe(
            "overlay-small-clusters",
            options="cluster_size=4k",
            writes=("write -P 1 5k 1k", "write -P 2 70k 5k"),
            backing=base,
        ),
        Recipe("overlay-on-raw", writes=overlay, backing=raw),
        Recipe(
            "overlay-on-short-raw",
            size="4M",
            writes=("write -P 1 3M 64k",),
            backing=Recipe("base", format="raw", size="1000k", writes=("write -P 7 0 5k",)),
        ),
        Recipe(
            "overlay-on-compressed",
            writes=("write -P 9 0 4k",),
            backing=Recipe("base", writes=PACKED),
        ),
        Recipe("three-deep", writes=("write -P 13 2M 64k",), backing=middle),
        Recipe(
            "three-deep-sizes",
            size="8M",
            writes=("write -P 13 7M 64k",),
            backing=Recipe("middle", size="1M", writes=("write -P 14 512k 64k",), backing=base),
        ),
        Recipe(
            "four-deep-raw",
            writes=("write -P 15 0 4k",),
            backing=Recipe(
                "top",
                writes=("write -P 1 3M 64k",),
                backing=Recipe(
                    "middle",
                    size="3M",
                    options="cluster_size=16k",
                    writes=("write -P 9 2M 16k",),
                    backing=raw,
                ),
            ),
        ),
        Recipe(
            "overlay-preallocated-base",
            size="8M",
            backing=Recipe("base", options="preallocation=metadata"),
        ),
        Recipe(
            "overlay-preallocated",
            options="preallocation=metadata,extended_l2=on",
            writes=("write -P 1 1M 64k",),
            backing=base,
        ),
    ]


def _data_files() -> list[Recipe]:
    return [
        Recipe("data-file", options="data_file=image.data", writes=MIXED),
        Recipe("data-file-empty", options="data_file=image.data"),
        Recipe(
            "data-file-discard",
            options="data_file=image.data",
            writes=(*MIXED, "discard 0 64k", "write -z -u 1M 64k"),
        ),
        Recipe("data-file-raw", options="data_file=image.data,data_file_raw=on", writes=MIXED),
        Recipe("data-file-raw-empty", options="data_file=image.data,data_file_raw=on"),
        Recipe("data-file-thin", options="data_file=image.data", writes=MIXED, steps=(thin(),)),
        Recipe(
            "data-file-raw-thin",
            options="data_file=image.data,data_file_raw=on",
            writes=MIXED,
            steps=(thin(),),
        ),
        Recipe("data-file-extended", options="data_file=image.data,extended_l2=on", writes=MIXED),
        Recipe("data-file-metadata", options="data_file=image.data,preallocation=metadata"),
        Recipe("data-file-falloc", options="data_file=image.data,preallocation=falloc"),
        Recipe(
            "data-file-snapshotless-backing",
            options="data_file=image.data",
            writes=("write -P 1 64k 64k",),
            backing=Recipe("base", writes=MIXED),
        ),
    ]


def _snapshots() -> list[Recipe]:
    later = io("write -P 20 0 64k", "write -P 21 3M 128k", "discard 256k 64k")
    return [
        Recipe("snapshot-empty", steps=(snapshot("one"),)),
        Recipe("snapshot", writes=MIXED, steps=(snapshot("one"),)),
        Recipe("snapshot-written", writes=MIXED, steps=(snapshot("one"), later)),
        Recipe(
            "snapshots",
            writes=MIXED,
            steps=(
                snapshot("one"),
                later,
                snapshot("two"),
                io("write -P 22 1M 64k"),
                snapshot("three"),
            ),
        ),
        Recipe(
            "snapshot-deleted",
            writes=MIXED,
            steps=(snapshot("one"), later, snapshot("two"), img("snapshot", "-d", "one", "{}")),
        ),
        Recipe("snapshot-v2", options="compat=0.10", writes=MIXED, steps=(snapshot("one"), later)),
        Recipe(
            "snapshot-extended",
            options="extended_l2=on",
            writes=MIXED,
            steps=(snapshot("one"), later),
        ),
        Recipe(
            "snapshot-512", options="cluster_size=512", writes=MIXED, steps=(snapshot("one"), later)
        ),
        Recipe(
            "snapshot-resized",
            writes=MIXED,
            steps=(snapshot("one"), img("resize", "-q", "{}", "8M"), io("write -P 5 7M 64k")),
        ),
        Recipe(
            "snapshot-state", writes=(*MIXED, "write -b -P 77 0 300k"), steps=(snapshot("one"),)
        ),
        Recipe(
            "snapshot-refcount-2",
            options="refcount_bits=2",
            writes=MIXED,
            steps=(snapshot("one"), later, snapshot("two")),
        ),
    ]


def _bitmaps() -> list[Recipe]:
    return [
        Recipe("bitmap-empty", steps=(bitmap("b0"),)),
        Recipe("bitmap", steps=(bitmap("b0"), io(*MIXED))),
        Recipe(
            "bitmaps",
            writes=MIXED,
            steps=(
                bitmap("b0", "-g", "4k"),
                bitmap("b1", "--disable"),
                io("write -P 1 1M 1M"),
                bitmap("b2", "-g", "2M"),
            ),
        ),
        Recipe(
            "bitmap-small-clusters",
            size="64M",
            options="cluster_size=512",
            steps=(bitmap("b0", "-g", "512"), io("write -P 1 0 1M", "write -P 1 40M 64k")),
        ),
        Recipe("bitmap-snapshot", writes=MIXED, steps=(snapshot("one"), bitmap("b0"), io(*MIXED))),
        Recipe(
            "bitmap-removed",
            writes=MIXED,
            steps=(bitmap("b0"), bitmap("b1"), img("bitmap", "--remove", "{}", "b0")),
        ),
    ]


def _preallocated() -> list[Recipe]:
    return [
        Recipe("preallocated-metadata", options="preallocation=metadata"),
        Recipe("preallocated-falloc", options="preallocation=falloc"),
        Recipe("preallocated-full", options="preallocation=full"),
        Recipe("preallocated-written", size="8M", options="preallocation=metadata", writes=MIXED),
        Recipe("preallocated-falloc-written", options="preallocation=falloc", writes=MIXED),
        Recipe("preallocated-extended", options="preallocation=metadata,extended_l2=on"),
        Recipe(
            "preallocated-extended-written",
            options="preallocation=metadata,extended_l2=on",
            writes=MIXED,
        ),
        Recipe(
            "preallocated-zeroed",
            options="preallocation=metadata",
            size="8M",
            writes=("write -P 1 0 1M", "write -z 512k 1M", "write -z 6M 2M"),
        ),
        Recipe("preallocated-512", size="300k", options="preallocation=metadata,cluster_size=512"),
        Recipe("preallocated-unaligned", size="1049088", options="preallocation=metadata"),
        Recipe("preallocated-64G", size="64G", options="preallocation=metadata"),
        Recipe("preallocated-v2", options="preallocation=metadata,compat=0.10"),
    ]


def _raw() -> list[Recipe]:
    return [
        Recipe("raw-empty", format="raw"),
        Recipe("raw-no-size", format="raw", size="0"),
        Recipe("raw-holes", format="raw", writes=("write -P 1 64k 64k", "write -P 2 1M 1M")),
        Recipe("raw-full", format="raw", writes=("write -P 1 0 4M",)),
        Recipe("raw-falloc", format="raw", options="preallocation=falloc"),
        Recipe("raw-preallocated", format="raw", options="preallocation=full"),
        Recipe(
            "raw-ends-in-sector",
            format="raw",
            writes=("write -P 1 1M 64k",),
            steps=(cut(1_100_000),),
        ),
        Recipe("raw-tail-hole", format="raw", writes=("write -P 1 0 4k",), steps=(cut(1_000_001),)),
    ]


def recipes() -> list[Recipe]:
    """Every undamaged image of the corpus."""
    return [
        *_geometries(),
        *_sizes(),
        *_compressed(),
        *_chains(),
        *_data_files(),
        *_snapshots(),
        *_bitmaps(),
        *_preallocated(),
        *_raw(),
    ]
