"""A small backing chain of every kind, built once by the real tools."""

from __future__ import annotations

from pathlib import Path

from tests.compat.workshop import Workshop


def make_chain(directory: Path) -> Path:
    """Make ``base.raw`` under ``mid.q`` under overlays of many kinds; return the directory."""
    shop = Workshop(directory)

    def disk(name: str, size: str, options: str, *writes: str) -> None:
        shop.create(Path(name), "qcow2", size, options)
        shop.io(Path(name), "qcow2", *writes)

    def overlay(name: str, size: str, options: str, *writes: str) -> None:
        disk(name, size, f"backing_file=mid.q,backing_fmt=qcow2,{options}", *writes)

    shop.create(Path("base.raw"), "raw", "1M", "")
    shop.io(Path("base.raw"), "raw", "write -P 1 0 900k")
    middle = ("write -P 2 100k 200k", "write -z 400k 128k", "write -P 0 700k 128k")
    top = ("write -P 3 200k 200k", "write -z 600k 128k", "write -P 4 830k 3k", "write -z 0 64k")
    disk("mid.q", "1M", "backing_file=base.raw,backing_fmt=raw", *middle)
    overlay("top.q", "1M", "compat=1.1", *top)
    overlay("small.q", "500k", "compat=1.1", "write -P 5 100k 90k", "write -P 6 460k 40k")
    overlay("large.q", "2M", "compat=1.1", *top, "write -P 7 1500k 100k")
    overlay("old.q", "1M", "compat=0.10", *top)
    overlay("fine.q", "1M", "cluster_size=4k", *top)
    overlay("coarse.q", "1M", "cluster_size=512k", *top)
    overlay("sub.q", "1M", "extended_l2=on", *top)
    overlay("snap.q", "1M", "compat=1.1", *top)
    shop.img("snapshot", "-c", "one", "snap.q")
    shop.io(Path("snap.q"), "qcow2", "write -P 8 300k 64k")
    disk("other.q", "1M", "", "write -P 2 0 300k", "write -P 9 500k 200k")
    disk("short.q", "300k", "", "write -P 2 0 300k")
    disk("long.q", "3M", "", "write -P 9 0 3M")
    disk("alone.q", "1M", "", "write -P 7 200k 100k", "write -z 400k 100k")
    shop.img("convert", "-c", "-O", "qcow2", "-B", "mid.q", "-F", "qcow2", "top.q", "packed.q")
    return directory


OVERLAYS = (
    "top.q",
    "small.q",
    "large.q",
    "old.q",
    "fine.q",
    "coarse.q",
    "sub.q",
    "snap.q",
    "packed.q",
)
