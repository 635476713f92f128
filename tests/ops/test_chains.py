"""Random lives of backing chains: written, committed, rebased, resized and put back in time.

Each disk of a chain goes along in memory; after every step the real tools must agree with it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import imgtool
from tests.kit import referee
from tests.kit.effort import effort
from tests.kit.oracle import OracleDisk

KiB = 1 << 10

OPTIONS = [
    {},
    {"cluster_size": "4k"},
    {"cluster_size": "2M"},
    {"compat": "0.10"},
    {"extended_l2": "on", "cluster_size": "16k"},
    {"cluster_size": "512", "refcount_bits": "64"},
    {"compression_type": "zstd"},
]


class Chain:
    """Disks on top of each other, each with what it ought to hold; writes go to the last."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.directory = directory
        self.made = 0
        self.disks: list[tuple[str, OracleDisk]] = []
        self.saved: dict[str, OracleDisk] = {}
        self.grow(self.chance.choice(("raw", "qcow2")))

    @property
    def top(self) -> Path:
        return self.directory / self.disks[-1][0]

    @property
    def truth(self) -> OracleDisk:
        return self.disks[-1][1]

    def size(self) -> int:
        return self.chance.randrange(1, 1400) * 512

    def range(self) -> tuple[int, int]:
        ends = sorted(self.chance.randrange(self.truth.size + 1) for _ in range(2))
        return ends[0], ends[1] - ends[0]

    def new(self, kind: str, backing: OracleDisk | None, **options: object) -> None:
        """Make a disk and put it on top of the list."""
        self.made += 1
        size = self.size()
        name = f"disk{self.made}.{kind}"
        imgtool.create(self.directory / name, size, format=kind, **options)  # type: ignore[arg-type]
        self.disks.append((name, OracleDisk(size, backing)))
        for _ in range(self.chance.randrange(4)):
            self.write()

    def grow(self, kind: str = "qcow2") -> None:
        """Put an overlay on the chain."""
        if not self.disks:
            self.new(kind, None)
            return
        if len(self.disks) > 3:
            return
        self.forget()
        name, below = self.disks[-1]
        options: dict[str, object] = dict(self.chance.choice(OPTIONS))
        self.new(
            "qcow2", below, backing_file=name, backing_format=name.partition(".")[2], **options
        )

    def write(self) -> None:
        offset, length = self.range()
        with imgtool.open(self.top, format=self.top.suffix[1:], writable=True) as disk:
            if self.chance.random() < 0.3:
                disk.write_zeroes(offset, length, unmap=self.chance.random() < 0.5)
                self.truth.zero(offset, length)
            else:
                data = bytes([self.chance.choice((0, 1, 2, 255))]) * length
                disk.write_at(offset, data)
                self.truth.write(offset, data)

    def resize(self) -> None:
        if self.saved and "0.10" in str(imgtool.info(self.top).format_specific):
            return
        size = self.size()
        imgtool.resize(self.top, size, format=self.top.suffix[1:], shrink=True)
        self.truth.resize(size)

    def take(self) -> None:
        if self.top.suffix == ".qcow2":
            name = f"s{len(self.saved)}"
            imgtool.create_snapshot(self.top, name)
            self.saved[name] = self.truth.copy()

    def restore(self) -> None:
        if self.saved:
            name = self.chance.choice(sorted(self.saved))
            imgtool.apply_snapshot(self.top, name)
            self.disks[-1] = (self.disks[-1][0], self.saved[name].copy())

    def forget(self) -> None:
        """Delete every snapshot: what they show depends on what is below."""
        for name in sorted(self.saved, key=lambda _: self.chance.random()):
            imgtool.delete_snapshot(self.top, name)
        self.saved.clear()

    def commit(self) -> None:
        if len(self.disks) < 2:
            return
        self.forget()
        depth = self.chance.randrange(1, len(self.disks))
        name, below = self.disks[-1 - depth]
        if depth == 1 and self.chance.random() < 0.8:
            drop = self.chance.random() < 0.3
            imgtool.commit(self.top, drop=drop)
        else:
            imgtool.commit(self.top, base=self.directory / name)
        below.resize(max(below.size, self.truth.size))
        below.write(0, bytes(self.truth.data))
        # What lay between shows something else now: nothing may depend on it any more.
        del self.disks[-depth:-1]
        if depth > 1:
            imgtool.rebase(self.top, name, name.partition(".")[2])

    def rebase(self) -> None:
        if self.top.suffix != ".qcow2":
            return
        self.forget()
        compress = self.chance.random() < 0.3
        choice = self.chance.randrange(-1, len(self.disks))
        if choice < 0:
            imgtool.rebase(self.top, None, compress=compress)
            del self.disks[:-1]
        elif choice == len(self.disks) - 1:
            # Another image altogether.
            top = self.disks.pop()
            self.disks.clear()
            self.new(self.chance.choice(("raw", "qcow2")), None)
            name = self.disks[0][0]
            self.disks.append(top)
            imgtool.rebase(self.top, name, name.partition(".")[2], compress=compress)
        else:
            name = self.disks[choice][0]
            imgtool.rebase(self.top, name, name.partition(".")[2], compress=compress)
            del self.disks[choice + 1 : -1]

    def check(self) -> None:
        for name, truth in self.disks[-2:]:
            path, kind = self.directory / name, name.partition(".")[2]
            expected = self.directory / "expected"
            expected.write_bytes(truth.data)
            with imgtool.open(path, format=kind) as disk:
                assert disk.size == truth.size
                assert truth.agrees(disk.read_at(0, disk.size)), name
            assert referee.compare(path, expected, kind, "raw"), name
            if kind == "qcow2":
                found = referee.check(path)
                assert found["exit"] == 0, (name, found)


STEPS = ("grow", "write", "write", "resize", "take", "restore", "forget", "commit", "rebase")


@pytest.mark.parametrize("seed", range(effort(6)))
def test_random_lives(tmp_path: Path, seed: int) -> None:
    chain = Chain(tmp_path, seed)
    chain.grow()
    chain.grow()
    done = []
    for _ in range(12):
        step = chain.chance.choice(STEPS)
        done.append(step)
        getattr(chain, step)()
        try:
            chain.check()
        except AssertionError as error:
            raise AssertionError(f"after {done}: {error}") from error
