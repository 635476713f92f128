"""Random writes into qcow2 images of every kind, new ones and QEMU's, next to an oracle.

Afterwards qemu-img has to find neither an error nor a leak, and to read what the oracle holds; what
snapshots hold may not have changed.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from imgtool.chain import Opener
from imgtool.device import BlockDevice
from imgtool.ops.create import begin, plan_create
from tests.kit import referee
from tests.kit.disks import ANY, check_extents, open_disk
from tests.kit.effort import effort
from tests.kit.oracle import OracleDisk

#: What is done, where (0 to 1 of the disk), how much of what unit, and with what seed.
Step = tuple[str, float, int, int, int]

_NOISE = random.Random(5).randbytes(1 << 16)
_KINDS = (
    *("write", "write", "write", "text", "zero", "unmap", "discard"),
    *("bulk", "bulk", "encoded", "encoded", "flush", "resize"),
)


@dataclass(frozen=True)
class Case:
    """An image: its options, sizes in bytes, and what happens to it.

    ``backing`` is the size of a backing image, None for none. Each of the ``qemu`` lists is
    written by QEMU, with a snapshot behind it if that can be. ``limit`` is how much may be dirty.
    """

    options: dict[str, Any] = field(hash=False)
    cluster: int
    size: int
    backing: int | None
    backing_format: str
    qemu: list[list[Step]]
    ours: list[list[Step]]
    limit: int

    @property
    def external(self) -> bool:
        return "data_file" in self.options

    @property
    def version(self) -> int:
        return 2 if self.options.get("compat") == "0.10" else 3

    @property
    def unit(self) -> int:
        return self.cluster // 32 if self.options.get("extended_l2") else self.cluster

    @property
    def most_snapshots(self) -> int:
        """How many snapshots it can have: each counts a cluster once more."""
        return 0 if self.external else (1 << self.options.get("refcount_bits", 16)) - 2


def steps(most: int) -> st.SearchStrategy[list[Step]]:
    return st.lists(
        st.tuples(
            st.sampled_from(_KINDS),
            st.floats(0, 1, allow_nan=False),
            st.integers(0, 5),
            st.integers(1, 4),
            st.integers(0, 1 << 20),
        ),
        max_size=most,
    )


@st.composite
def cases(draw: st.DrawFn, *, fresh: bool) -> Case:
    bits = draw(st.sampled_from([9, 9, 10, 12, 14, 16, 16, 17, 21]))
    options: dict[str, Any] = {"cluster_size": 1 << bits}
    if draw(st.integers(0, 3)) == 0:
        options["compat"] = "0.10"
    else:
        options["refcount_bits"] = 1 << draw(st.integers(0, 6))
        options["compression_type"] = draw(st.sampled_from(["zlib", "zstd"]))
        if bits >= 14:
            options["extended_l2"] = draw(st.booleans())
        if draw(st.integers(0, 4)) == 0:
            options["data_file"] = "image.data"
            options["data_file_raw"] = draw(st.booleans())
    size = draw(st.integers(0, min(max(40 << bits, 1 << 17), 5 << 20) // 512)) * 512
    backing = None
    if not options.get("data_file_raw") and draw(st.booleans()):
        backing = draw(st.sampled_from([size, size // 1024 * 512, size + 70_144]))
    return Case(
        options,
        1 << bits,
        size,
        backing,
        draw(st.sampled_from(["raw", "qcow2"])),
        [] if fresh else draw(st.lists(steps(6), max_size=3)),
        draw(st.lists(steps(15), min_size=1, max_size=3)),
        draw(st.sampled_from([0, 4096, 1 << 17, 16 << 20])),
    )


class Bench:
    """An image on its way through a case, with its oracle."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.path = folder / "image.qcow2"
        self.snapshots: list[OracleDisk] = []
        self._compressed = False
        below = None
        if case.backing is not None:
            below = OracleDisk(case.backing)
            below.write(0, self._noise(case.backing, 9))
            base = folder / f"base.{case.backing_format}"
            raw = folder / "base.raw"
            raw.write_bytes(bytes(below.data))
            if base != raw:
                referee.convert(raw, base, format="raw", to="qcow2")
            self.base: Path | None = base
        else:
            self.base = None
        self.oracle = OracleDisk(case.size, below)
        self.options = dict(case.options)
        if case.external:
            # QEMU takes a relative name for one in the current directory.
            self.options["data_file"] = str(folder / "image.data")

    # By QEMU

    def prepare(self) -> None:
        """Let QEMU make the image and write to it."""
        referee.create(
            self.path,
            self.case.size,
            options=self.options,
            backing=self.base,
            backing_format=self.case.backing_format if self.base else None,
        )
        noise = self.path.parent / "noise"
        noise.write_bytes(_NOISE)
        for number, listed in enumerate(self.case.qemu):
            commands = [self._command(step, noise) for step in listed]
            chosen = [command for command in commands if command]
            if chosen:
                referee.io(self.path, chosen)
            if number < self.case.most_snapshots:
                referee.must("qemu-img", "snapshot", "-c", f"s{number}", self.path)
                self.snapshots.append(self.oracle.copy())

    def _command(self, step: Step, noise: Path) -> str | None:
        kind, offset, length, seed = self._place(step)
        if not length:
            return None
        if kind in ("write", "bulk"):
            self.oracle.write(offset, (_NOISE * (length // len(_NOISE) + 1))[:length])
            return f"write -s {noise} {offset} {length}"
        if kind == "encoded" and not self.case.external:
            start = offset // self.case.cluster * self.case.cluster
            length = min(self.case.cluster, self.oracle.size - start)
            # QEMU does not put compressed clusters where something is.
            self.oracle.zero(start, length)
            return f"write -z -u {start} {length}"
        if kind in ("zero", "unmap"):
            self.oracle.zero(offset, length)
            return f"write -z {'-u' if kind == 'unmap' else ''} {offset} {length}"
        self.oracle.write(offset, bytes([seed % 255 + 1]) * length)
        return f"write -P {seed % 255 + 1} {offset} {length}"

    # By imgtool

    def work(self, device: BlockDevice, listed: list[Step], *, fresh: bool) -> None:
        for step in listed:
            kind, offset, length, seed = self._place(step)
            if kind == "flush":
                device.flush()
            elif kind == "resize":
                if not fresh:
                    self._resize(device, offset)
            elif length:
                getattr(self, f"_{kind}")(device, offset, length, seed)
            if length and self.oracle.size:
                start = max(0, min(offset, self.oracle.size - 1) - 700)
                end = min(self.oracle.size, offset + length + 700)
                assert self._agrees(device.read_at(start, end - start), start), step
        found = device.read_at(0, device.size)
        assert self.oracle.agrees(found)
        check_extents(device, found)

    def _agrees(self, found: bytes, start: int) -> bool:
        return all(
            self.oracle.unknown[start + i] or byte == self.oracle.data[start + i]
            for i, byte in enumerate(found)
            if byte != self.oracle.data[start + i]
        )

    def _write(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        data = self._noise(length, seed)
        device.write_at(offset, data)
        self.oracle.write(offset, data)

    def _text(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        data = (b"%d bottles, " % seed * length)[:length]
        device.write_at(offset, bytearray(data))
        self.oracle.write(offset, data)

    def _zero(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        device.write_zeroes(offset, length)
        self.oracle.zero(offset, length)

    def _unmap(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        device.write_zeroes(offset, length, unmap=True)
        self.oracle.zero(offset, length)

    def _discard(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        device.discard(offset, length)
        self.oracle.discard(offset, length)

    def _bulk(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        # Parts of clusters may be reserved in a new image, unless these are compressed already.
        alignment = self.case.cluster if self._compressed else device.limits.alignment
        start = offset // alignment * alignment
        end = min(-(-(offset + length) // alignment) * alignment, device.size)
        data = self._noise(end - start, seed)
        extents = device.reserve(start, end - start)
        assert extents[0].offset == start
        assert sum(extent.length for extent in extents) == end - start
        for extent in extents:
            assert extent.storage is not None
            assert extent.host_offset is not None
            piece = data[extent.offset - start : extent.end - start]
            extent.storage.write_at(extent.host_offset, piece)
        device.link(extents)
        self.oracle.write(start, data)

    def _encoded(self, device: BlockDevice, offset: int, length: int, seed: int) -> None:
        size = device.encoded_size
        assert size == (0 if self.case.external else self.case.cluster)
        if not size:
            return
        # A few clusters at once, so that they are packed behind one another.
        first = offset // size * size
        pieces: list[bytes] = []
        for start in range(first, min(offset + length, device.size), size):
            data = (self._noise(size // 3, seed + start) + b"z" * size)[:size]
            count = min(size, device.size - start)
            (encoded,) = device.encode(data[:count].ljust(size, b"\0"))
            assert encoded is not None
            pieces.append(encoded)
            self.oracle.write(start, data[:count])
        self._compressed = True
        device.write_encoded(first, pieces)

    def _resize(self, device: BlockDevice, offset: int) -> None:
        if self.case.version == 2 and self.snapshots:
            return
        size = (offset + (self.case.cluster if offset % 3 else 0)) // 512 * 512
        device.resize(size)
        self.oracle.resize(size)

    # In the end

    def check(self) -> None:
        """Compare everything with what qemu-img finds."""
        found = referee.check(self.path)
        assert found["exit"] == 0, found
        contents = referee.contents(self.path, "qcow2", self.path.parent)
        assert self.oracle.agrees(contents)
        with open_disk(self.path, policy=ANY) as device:
            assert device.read_at(0, device.size) == contents
        if self.case.options.get("data_file_raw"):
            data = (self.path.parent / "image.data").read_bytes()
            assert data[: len(contents)] == contents
        for number, oracle in enumerate(self.snapshots):
            name = f"s{number}"
            with open_disk(self.path, policy=ANY, options={"snapshot": name}) as device:
                held = device.read_at(0, device.size)
            assert oracle.agrees(held), number
            # qemu-img shows a snapshot with the size that the disk has now.
            shown = referee.contents(self.path, "qcow2", self.path.parent, snapshot=name)
            common = min(len(shown), len(held))
            assert shown[:common] == held[:common], number

    def _place(self, step: Step) -> tuple[str, int, int, int]:
        """Turn a step into ``(kind, offset, length, seed)`` that fit the disk as it is."""
        kind, where, grain, count, seed = step
        size, cluster, unit = self.oracle.size, self.case.cluster, self.case.unit
        grains = (1, 512, unit, cluster, 4096, 2 * cluster + 512)
        step_size = (1, 512, unit, cluster)[seed % 4]
        offset = int(where * size) // step_size * step_size
        length = min(max(0, grains[grain] * count + seed % 3 - 1), size - offset, 1 << 20)
        return kind, offset, max(0, length), seed

    @staticmethod
    def _noise(length: int, seed: int) -> bytes:
        start = seed * 613 % len(_NOISE)
        return (_NOISE[start:] + _NOISE * (length // len(_NOISE) + 1))[:length]


@contextmanager
def bench(case: Case) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("imgtool.formats.qcow2.metadata.DIRTY_LIMIT", case.limit),
    ):
        yield Bench(case, Path(folder))


def again(made: Bench, lists: list[list[Step]]) -> None:
    """Open the image for writing, work, and close it, once for each list."""
    for listed in lists:
        with open_disk(made.path, "qcow2", policy=ANY, writable=True) as device:
            made.work(device, listed, fresh=False)


@given(case=cases(fresh=True))
@settings(max_examples=effort(50), phases=[Phase.generate])
def test_new_images(case: Case) -> None:
    with bench(case) as made:
        plan = plan_create(
            made.path,
            case.size,
            format="qcow2",
            backing_file=str(made.base) if made.base else None,
            backing_format=case.backing_format if made.base else None,
            options=made.options,
            opener=Opener(policy=ANY),
        )
        backing = open_disk(made.base, case.backing_format, policy=ANY) if made.base else None
        with begin(plan, backing=backing, cache="unsafe") as image:
            made.work(image.device, case.ours[0], fresh=True)
            image.finish()
        again(made, case.ours[1:])
        made.check()


@given(case=cases(fresh=False))
@settings(max_examples=effort(60), phases=[Phase.generate])
def test_images_by_qemu(case: Case) -> None:
    with bench(case) as made:
        made.prepare()
        again(made, case.ours)
        made.check()
