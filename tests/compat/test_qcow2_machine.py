"""Random histories of one qcow2 image next to an oracle, judged by qemu-img at the end."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import imgtool
from imgtool import Reference
from imgtool.ops.bitmap import Action, Change, change_bitmap
from tests.kit import referee
from tests.kit.effort import effort

_GEOMETRIES = (
    {},
    {"compat": "0.10"},
    {"cluster_size": 512},
    {"cluster_size": 1024, "refcount_bits": 4},
    {"cluster_size": 4096, "refcount_bits": 8},
    {"cluster_size": 2 << 20},
    {"extended_l2": True, "cluster_size": 16384},
    {"extended_l2": True},
    {"refcount_bits": 64, "lazy_refcounts": True},
    {"data_file": "data"},
    {"data_file": "data", "data_file_raw": True},
)
_SIZES = (300 << 10, 1 << 20, (3 << 20) + 7 * 512, 5 << 20)
_GRANULARITY = 65536


class Qcow2History(RuleBasedStateMachine):
    """Writes, resizes, snapshots, bitmaps, commits, rebases and reopenings in any order."""

    @initialize(
        geometry=st.sampled_from(_GEOMETRIES),
        size=st.sampled_from(_SIZES),
        backing=st.sampled_from((None, 0.5, 1.0, 1.3)),
        seed=st.integers(0, 1 << 32),
    )
    def begin(
        self, geometry: dict[str, object], size: int, backing: float | None, seed: int
    ) -> None:
        self.random = random.Random(seed)
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "disk.qcow2")
        self.oracle = bytearray(size)
        self.snapshots: dict[str, bytes] = {}
        self.dirty: set[int] | None = None
        self.vague: set[int] = set()
        self.shares = "data_file" not in geometry
        self.rebases = not geometry.get("data_file_raw")
        self.below: str | None = None
        self.bases = 0
        self.version = 2 if geometry.get("compat") == "0.10" else 3
        options = dict(geometry)
        if backing is not None and self.rebases:
            below = self._base(backing)
            self.oracle[: len(below)] = below[:size]
            options.update(backing_file=self.below, backing_fmt="raw")
        if self.random.random() < 0.5:
            imgtool.create(self.path, size, format="qcow2", **options)
        else:
            referee.must(
                "qemu-img",
                *("create", "-q", "-f", "qcow2"),
                *_pairs(options),
                self.path,
                str(size),
                cwd=self.folder.name,
            )
        self.disk = imgtool.open(self.path, writable=True)

    def _base(self, portion: float) -> bytes:
        """Make another backing file, ``portion`` as long as the disk; return what it holds."""
        self.bases += 1
        self.below = f"base{self.bases}.raw"
        below = self.random.randbytes(int(len(self.oracle) * portion) // 512 * 512)
        Path(self.folder.name, self.below).write_bytes(below)
        return below

    def _range(self) -> tuple[int, int]:
        size = len(self.oracle)
        offset = self.random.randrange(size)
        length = self.random.choice((1, 512, 4096, 70000, self.random.randrange(1, 300000)))
        return offset, min(length, size - offset)

    def _mark(self, offset: int, length: int) -> None:
        if self.dirty is not None:
            last = (offset + length - 1) // _GRANULARITY
            self.dirty.update(range(offset // _GRANULARITY, last + 1))

    @rule()
    def write(self) -> None:
        offset, length = self._range()
        data = self.random.randbytes(length)
        self.disk.write_at(offset, data)
        self.oracle[offset : offset + length] = data
        self._mark(offset, length)

    @rule(unmap=st.booleans())
    def zero(self, unmap: bool) -> None:
        offset, length = self._range()
        self.disk.write_zeroes(offset, length, unmap=unmap)
        self.oracle[offset : offset + length] = bytes(length)
        self._mark(offset, length)

    @rule()
    def discard(self) -> None:
        offset, length = self._range()
        self.disk.discard(offset, length)
        # What it reads as is not defined, but it stays that; parts of clusters are left alone.
        now = self.disk.read_at(offset, length)
        end = offset + length
        for part in range(offset // _GRANULARITY, (end - 1) // _GRANULARITY + 1):
            low, high = max(offset, part * _GRANULARITY), min(end, (part + 1) * _GRANULARITY)
            if now[low - offset : high - offset] != self.oracle[low:high]:
                self._mark(low, 1)
        self.vague.update(range(offset // _GRANULARITY, (offset + length) // _GRANULARITY + 1))
        self.oracle[offset : offset + length] = now

    @rule()
    def read(self) -> None:
        offset, length = self._range()
        assert self.disk.read_at(offset, length) == self.oracle[offset : offset + length]

    @rule()
    def flush(self) -> None:
        self.disk.flush()

    @rule()
    def reopen(self) -> None:
        self.disk.close()
        self.disk = imgtool.open(self.path, writable=True)

    @rule()
    def qemu_writes(self) -> None:
        """QEMU writes into what we have written, and its bitmap follows."""
        self.disk.close()
        lines = []
        for _ in range(3):
            offset, length = self._range()
            value = self.random.randrange(256)
            verb = self.random.choice((f"write -P {value}", "write -z", "write -z -u"))
            lines.append(f"{verb} {offset} {length}")
            if verb.startswith("write -z"):
                value = 0
            self.oracle[offset : offset + length] = bytes([value]) * length
            self._mark(offset, length)
        referee.io(self.path.name, lines, cwd=self.path.parent)
        self.disk = imgtool.open(self.path, writable=True)

    # What lies below snapshots changes, so there must be none.

    @precondition(lambda self: self.below and not self.snapshots)
    @rule()
    def commit(self) -> None:
        self.disk.close()
        imgtool.commit(self.path)
        self._blur()
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: self.rebases and not self.snapshots)
    @rule(portion=st.sampled_from((None, 0.4, 1.0, 1.6)))
    def rebase(self, portion: float | None) -> None:
        self.disk.close()
        if portion is None:
            self.below = None
            imgtool.rebase(self.path, None)
        else:
            self._base(portion)
            imgtool.rebase(self.path, self.below, "raw")
        self._blur()
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: not self.snapshots)
    @rule()
    def compact(self) -> None:
        self.disk.close()
        imgtool.compact(self.path)
        self._blur()
        self.disk = imgtool.open(self.path, writable=True)

    def _blur(self) -> None:
        """The contents are the same, so a bitmap may have marked anything, and need not have."""
        self.vague.update(range(-(-len(self.oracle) // _GRANULARITY)))

    @precondition(lambda self: self.version > 2 or not self.snapshots)
    @rule(change=st.integers(-3000, 6000))
    def resize(self, change: int) -> None:
        old = len(self.oracle)
        size = max(512, old + change * 512)
        self.disk.resize(size)
        del self.oracle[size:]
        self.oracle.extend(bytes(size - len(self.oracle)))
        if self.dirty is not None:
            # What a larger disk shows anew may count as changed.
            parts = -(-size // _GRANULARITY)
            self.dirty = {part for part in self.dirty if part < parts}
            self.vague = set(range(old // _GRANULARITY, parts)) | self.vague

    @precondition(lambda self: self.shares and len(self.snapshots) < 5)
    @rule()
    def take_snapshot(self) -> None:
        name = f"s{self.random.randrange(1 << 30)}"
        self.disk.close()
        imgtool.create_snapshot(self.path, name)
        self.snapshots[name] = bytes(self.oracle)
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: self.snapshots and self.dirty is None)
    @rule()
    def apply_snapshot(self) -> None:
        name = self.random.choice(sorted(self.snapshots))
        self.disk.close()
        imgtool.apply_snapshot(self.path, name)
        self.oracle = bytearray(self.snapshots[name])
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: self.snapshots)
    @rule()
    def delete_snapshot(self) -> None:
        name = self.random.choice(sorted(self.snapshots))
        self.disk.close()
        imgtool.delete_snapshot(self.path, name)
        del self.snapshots[name]
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: self.version > 2 and self.dirty is None)
    @rule()
    def add_bitmap(self) -> None:
        self.disk.close()
        change_bitmap(Reference(self.path), "b", [Action(Change.ADD)], granularity=_GRANULARITY)
        self.dirty, self.vague = set(), set()
        self.disk = imgtool.open(self.path, writable=True)

    @precondition(lambda self: self.dirty is not None)
    @rule()
    def remove_bitmap(self) -> None:
        self.disk.close()
        change_bitmap(Reference(self.path), "b", [Action(Change.REMOVE)])
        self.dirty = None
        self.disk = imgtool.open(self.path, writable=True)

    @invariant()
    def size_is_known(self) -> None:
        if hasattr(self, "disk"):
            assert self.disk.size == len(self.oracle)

    def teardown(self) -> None:
        if not hasattr(self, "disk"):
            return
        self.disk.close()
        try:
            self._judge()
        finally:
            self.folder.cleanup()

    def _judge(self) -> None:
        # QEMU looks for a data file in the directory that it runs in.
        folder = self.folder.name
        referee.must("qemu-img", "check", "-q", "-f", "qcow2", self.path, cwd=folder)
        plain = Path(self.folder.name, "oracle.raw")
        plain.write_bytes(self.oracle)
        referee.must(
            *("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2"), plain, self.path, cwd=folder
        )
        assert imgtool.check(self.path).clean
        for name, contents in self.snapshots.items():
            with imgtool.open(self.path, snapshot=name) as disk:
                assert disk.read_at(0, disk.size) == contents
        if self.dirty is not None:
            found: set[int] = set()
            for offset, length in imgtool.dirty_ranges(self.path, "b"):
                last = (offset + length - 1) // _GRANULARITY
                found.update(range(offset // _GRANULARITY, last + 1))
            assert self.dirty <= found <= self.dirty | self.vague


def _pairs(options: dict[str, object]) -> list[str]:
    words = {True: "on", False: "off"}
    pairs = [
        f"{name}={words[value] if isinstance(value, bool) else value}"
        for name, value in options.items()
    ]
    return ["-o", ",".join(pairs)] if pairs else []


TestQcow2History = Qcow2History.TestCase
TestQcow2History.settings = settings(
    max_examples=effort(30), stateful_step_count=40, phases=[Phase.reuse, Phase.generate]
)
