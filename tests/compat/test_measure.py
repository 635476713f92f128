"""``measure`` gives the figures of ``qemu-img measure``."""

from __future__ import annotations

import random

import pytest

from tests.compat.corpus import WHOLE, Both
from tests.kit.effort import effort

OPTIONS = ["", "cluster_size=4k", "cluster_size=2M,extended_l2=on", "preallocation=full"]


@pytest.mark.parametrize("name", WHOLE)
def test_images(name: str, both: Both) -> None:
    # Clusters of 4 KiB are too small for a disk of 64 TiB, which qemu-img measures all the same.
    for options in OPTIONS if name != "large-sparse" else ("", "cluster_size=2M"):
        chosen = ("-o", options) if options else ()
        arguments = ("measure", "--output", "json", "-O", "qcow2", *chosen, "{}")
        theirs, ours = both.run(name, *arguments)
        assert ours == theirs, options


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        "-O raw {}",
        "-O qcow2 {}",
        "-O qcow2 -f qcow2 -U {}",
        "-O qcow2 -l one {}",
        "-O qcow2 -l snapshot.name=one {}",
        "-O qcow2 -o compat=0.10 {}",
        "-O qcow2 -o backing_file=x,backing_fmt=raw {}",
        "-O qcow2 -o data_file=x {}",
        "-O qcow2 --image-opts driver=qcow2,file.filename={}",
        "-l nothing {}",
        "-l one --size 1G",
        "-f raw --size 1G",
        "--size 1G {}",
        "-O nonsense --size 1G",
        "-O qcow2 -o nonsense=1 --size 1G",
        "-O qcow2 -o cluster_size=3 --size 1G",
        "-O qcow2 -o refcount_bits=3 --size 1G",
        "-O qcow2 -o refcount_bits=8,compat=0.10 --size 1G",
        "-O qcow2 --size 64P",
        "--size 8E",
        "--size -1",
        "--size nonsense",
        "-O qcow2",
        "",
    ],
)
@pytest.mark.parametrize("name", ["bitmap-snapshot", "snapshot-v2"])
def test_arguments(name: str, arguments: str, output: str, both: Both) -> None:
    theirs, ours = both.run(name, "measure", "--output", output, *arguments.split())
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)


def test_sizes(both: Both) -> None:
    chance = random.Random(5)
    for _ in range(effort(60)):
        size = chance.randrange(1 << chance.randrange(1, 47))
        options = {
            "cluster_size": 1 << chance.randrange(9, 22),
            "refcount_bits": 1 << chance.randrange(7),
            "preallocation": chance.choice(("off", "metadata", "falloc", "full")),
            "extended_l2": chance.choice(("on", "off")),
            "compression_type": chance.choice(("zlib", "zstd")),
        }
        text = ",".join(f"{name}={value}" for name, value in options.items())
        arguments = ("--output", "json", "-O", "qcow2", "-o", text, "--size", str(size))
        theirs, ours = both.run("empty", "measure", *arguments)
        assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), arguments


def test_raw(both: Both) -> None:
    for size in (0, 1, 511, 512, 1000, 1 << 40):
        theirs, ours = both.run("empty", "measure", "--size", str(size))
        assert ours == theirs
