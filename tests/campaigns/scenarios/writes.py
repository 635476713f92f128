"""What a guest writes, to disks of every kind."""

from __future__ import annotations

from collections.abc import Iterator

from tests.campaigns.scenarios.folders import (
    FAST,
    PASSWORD,
    SECRET,
    MiB,
    dirty,
    one,
    overlay,
    with_bitmaps,
    with_snapshots,
)
from tests.campaigns.scenarios.model import Image, Scenario

#: Guest writes of every kind, on a disk of 1 MiB.
_WRITES = (
    "write -P 0x41 0 4k", "write -P 0x42 1536 100k", "flush", "write -z 200k 64k",
    "write -P 0x43 210k 8k", "write -z -u 300k 128k", "discard 512k 128k", "flush",
    "write -P 0x44 600k 64k", "write -P 0x45 1000k 24k", "write -P 0x46 400k 512",
)  # fmt: skip


def io(*lines: str, image: tuple[str, ...] = ("-f", "qcow2", "a.qcow2")) -> tuple[str, ...]:
    """The command line of ``io`` that carries out ``lines``."""
    return ("io", "--trust", *(word for line in lines for word in ("-c", line)), *image)


def writes() -> Iterator[Scenario]:
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
