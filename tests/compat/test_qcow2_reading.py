"""Random qcow2 images that QEMU wrote, read by imgtool.

qemu-io writes a random script into a chain of images, a bytearray is written to alongside, and
then both qemu-img and imgtool have to see what the bytearray holds.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.chain import Reference
from imgtool.ops.map import extent_dict, map_image
from tests.kit import referee
from tests.kit.disks import check_extents, check_reads, check_threads, open_disk
from tests.kit.effort import effort
from tests.kit.oracle import OracleDisk

Operation = tuple[str, int, int, int]

#: Bytes that differ everywhere, so that nothing read from the wrong place passes for right.
NOISE = random.Random(2024).randbytes(1 << 16)


@dataclass(frozen=True)
class Geometry:
    """The options of one image. ``compressed`` says if compressed writes are possible."""

    cluster_size: int
    options: dict[str, Any] = field(hash=False)

    @property
    def compressed(self) -> bool:
        return "data_file" not in self.options


@dataclass(frozen=True)
class Layer:
    """One image of a chain: its size when it is created, and what happens to it then."""

    geometry: Geometry
    size: int
    steps: list[tuple[str, Any]]


@st.composite
def geometries(draw: st.DrawFn, *, top: bool) -> Geometry:
    bits = draw(st.sampled_from([9, 10, 12, 14, 16, 16, 17, 21]))
    options: dict[str, Any] = {"cluster_size": 1 << bits}
    if draw(st.booleans()) and draw(st.booleans()):
        options["compat"] = "0.10"
        return Geometry(1 << bits, options)
    options["refcount_bits"] = 1 << draw(st.integers(2, 6))
    if bits >= 14:
        options["extended_l2"] = draw(st.booleans())
    if draw(st.booleans()):
        options["compression_type"] = draw(st.sampled_from(["zlib", "zstd"]))
    options["lazy_refcounts"] = draw(st.booleans())
    if top and draw(st.integers(0, 5)) == 0:
        options["data_file"] = "top.data"
        options["data_file_raw"] = draw(st.booleans())
    return Geometry(1 << bits, options)


@st.composite
def operations(draw: st.DrawFn, geometry: Geometry, size: int) -> list[Operation]:
    """Writes, zero writes and discards, drawn to where clusters and subclusters meet."""
    if not size:
        return []
    cluster = geometry.cluster_size
    unit = cluster // 32 if geometry.options.get("extended_l2") else cluster
    kinds = ["write", "write", "noise", "noise", "zero", "unmap", "discard"]
    kinds += ["compress", "compress"] if geometry.compressed else []
    found = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(kinds))
        step = draw(st.sampled_from([1, 512, unit, cluster]))
        offset = draw(st.integers(0, size - 1)) // step * step
        length = draw(st.sampled_from([1, 512, unit - 1, unit, cluster, 3 * cluster + 512]))
        length = max(1, min(length, size - offset, 1 << 20))
        found.append((kind, offset, length, draw(st.integers(1, 255))))
    return found


@st.composite
def layers(draw: st.DrawFn, *, top: bool) -> Layer:
    geometry = draw(geometries(top=top))
    largest = max(8 * geometry.cluster_size, 1 << 18)
    size = draw(st.integers(0, min(largest, 6 << 20) // 512)) * 512
    created = size
    steps: list[tuple[str, Any]] = [("write", draw(operations(geometry, size)))]
    for number in range(draw(st.integers(0, 2)) if top else 0):
        # QEMU neither grows version 2 images with snapshots nor takes snapshots with data files.
        if draw(st.integers(0, 2)) == 0 and geometry.options.get("compat") != "0.10":
            size += draw(st.integers(1, 1 << 9)) * 512
            steps.append(("resize", size))
        elif geometry.compressed:
            steps.append(("snapshot", f"snapshot {number}"))
        steps.append(("write", draw(operations(geometry, size))))
    return Layer(geometry, created, steps)


chains = st.integers(0, 2).flatmap(
    lambda below: st.tuples(*(layers(top=number == below) for number in range(below + 1)))
)


class Image:
    """An image being made by QEMU, with its oracle."""

    def __init__(self, path: Path, layer: Layer, below: Image | None) -> None:
        self.path = path
        self.geometry = layer.geometry
        self.snapshots: list[tuple[str, OracleDisk]] = []
        self._used: set[int] = set()
        self.oracle = OracleDisk(layer.size, below.oracle if below else None)
        options = dict(layer.geometry.options)
        if "data_file" in options:
            options["data_file"] = path.parent / "top.data"
        if below is not None and options.get("data_file_raw"):
            # QEMU does not put such an image on top of another.
            options["data_file_raw"] = False
        referee.create(
            path, layer.size, options=options,
            backing=below.path if below else None, backing_format="qcow2" if below else None,
        )  # fmt: skip
        for kind, value in layer.steps:
            getattr(self, kind)(value)

    def write(self, operations: list[Operation]) -> None:
        commands = [self._command(*operation) for operation in operations]
        if commands:
            referee.io(self.path, commands)

    def snapshot(self, name: str) -> None:
        referee.must("qemu-img", "snapshot", "-c", name, self.path)
        self.snapshots.append((name, self.oracle.copy()))

    def resize(self, size: int) -> None:
        referee.must("qemu-img", "resize", "-q", "-f", "qcow2", self.path, str(size))
        # On a backing image QEMU writes zeros up to the end of the cluster the disk ended in.
        if self.oracle.size % self.geometry.cluster_size:
            self._use(self.oracle.size, 1)
        self.oracle.resize(size)

    def _command(self, kind: str, offset: int, length: int, pattern: int) -> str:
        cluster = self.geometry.cluster_size
        if kind == "compress":
            # Only whole clusters that were never written to can be compressed.
            start = offset // cluster * cluster
            end = min(self.oracle.size, -(-(offset + length) // cluster) * cluster)
            if not self._used & set(range(start // cluster, -(-end // cluster))):
                self._use(start, end - start)
                self.oracle.write(start, self._noise(end - start))
                return f"write -c -s {self._noise_file()} {start} {end - start}"
            kind = "noise"
        self._use(offset, length)
        if kind == "noise":
            self.oracle.write(offset, self._noise(length))
            return f"write -s {self._noise_file()} {offset} {length}"
        if kind == "write":
            self.oracle.write(offset, bytes([pattern]) * length)
            return f"write -P {pattern} {offset} {length}"
        if kind == "discard":
            self.oracle.discard(offset, length)
            return f"discard {offset} {length}"
        self.oracle.zero(offset, length)
        return f"write -z {'-u ' if kind == 'unmap' else ''}{offset} {length}"

    def _use(self, offset: int, length: int) -> None:
        cluster = self.geometry.cluster_size
        self._used |= set(range(offset // cluster, (offset + length - 1) // cluster + 1))

    def _noise(self, length: int) -> bytes:
        return (NOISE * (length // len(NOISE) + 1))[:length]

    def _noise_file(self) -> Path:
        path = self.path.parent / "noise"
        if not path.exists():
            path.write_bytes(NOISE)
        return path


@contextmanager
def images(chain: tuple[Layer, ...]) -> Iterator[list[Image]]:
    """The images of a chain, the lowest first, in a folder that lasts as long as the block."""
    with tempfile.TemporaryDirectory() as folder:
        made: list[Image] = []
        for number, layer in enumerate(chain):
            path = Path(folder) / f"layer-{number}.qcow2"
            made.append(Image(path, layer, made[-1] if made else None))
        yield made


def check_image(image: Image, *, snapshot: str | None = None, oracle: OracleDisk) -> None:
    """qemu-img, imgtool and the oracle have to see the same disk."""
    # qemu-img shows a snapshot with the size that the disk has now.
    truth = referee.contents(image.path, "qcow2", image.path.parent, snapshot=snapshot)
    truth = truth[: oracle.size]
    assert oracle.agrees(truth), "the test's own oracle differs from QEMU"
    with open_disk(image.path, options={"snapshot": snapshot}) as device:
        check_reads(device, truth, count=24)
        check_extents(device, truth)
        check_threads(device, truth, threads=4, count=8)


@given(chain=chains)
@settings(max_examples=effort(100))
def test_random_images(chain: tuple[Layer, ...]) -> None:
    with images(chain) as made:
        for image in made:
            check_image(image, oracle=image.oracle)
            mapped = [extent_dict(extent) for extent in map_image(Reference(image.path, "qcow2"))]
            assert mapped == [
                {key: value for key, value in entry.items() if key != "filename"}
                for entry in referee.mapping(image.path)
                if entry["length"]
            ]
        top = made[-1]
        for number, (name, oracle) in enumerate(top.snapshots):
            check_image(top, snapshot=name, oracle=oracle)
            with open_disk(top.path, options={"snapshot": str(number + 1)}) as device:
                assert oracle.agrees(device.read_at(0, device.size))
