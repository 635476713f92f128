"""Whatever the bytes are: a verdict, from few of them, and from one file."""

from __future__ import annotations

import functools
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imgtool
from imgtool.errors import BadOption
from imgtool.inspection import Inspection
from imgtool.storage.memory import MemoryStorage
from tests.kit import foreign
from tests.kit.corrupt import put, truncations
from tests.kit.effort import effort
from tests.kit.limits import within_limits
from tests.kit.qcow2 import ImageBuilder
from tests.ops.inspect.judging import FEW, SOUND, CountingStorage, codes, judge, l2_table

#: No sound image has more structure that is looked at.
MOST_READ = 640 << 10


@functools.cache
def _sample(name: str) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """A sound image, and what is read of it."""
    image = SOUND[name][1]()
    storage = CountingStorage(image)
    imgtool.inspect(storage)
    return image, tuple(sorted({read for read in storage.reads if read[1]}))


@pytest.mark.parametrize("name", FEW)
def test_little_is_read(name: str) -> None:
    storage = CountingStorage(SOUND[name][1]())
    imgtool.inspect(storage)
    assert sum(length for _, length in storage.reads) < MOST_READ
    assert len(storage.reads) < 50


@pytest.mark.parametrize("name", FEW)
def test_cut_off_anywhere(name: str) -> None:
    image, reads = _sample(name)
    edges = {edge for offset, length in reads for edge in (offset, offset + length)}
    storage = MemoryStorage(image)
    for length in reversed(truncations(len(image), edges)):
        storage.truncate(length)
        found = imgtool.inspect(storage)
        assert found.file_size == length
        if length < 4:
            assert found.format == "raw"


@pytest.mark.parametrize("name", FEW)
def test_cut_off_streams(name: str) -> None:
    image, reads = _sample(name)
    edges = sorted({edge for offset, length in reads for edge in (offset, offset + length)})
    for edge in edges[:: max(1, len(edges) // 6)]:
        judge(image[: max(0, edge - 1)], cuts=())


@settings(max_examples=effort(150))
@given(data=st.data())
def test_any_damage(data: st.DataObject) -> None:
    """Bits and integers anywhere in what is read: only a verdict comes of it."""
    name = data.draw(st.sampled_from(FEW))
    image, reads = _sample(name)
    changed = bytearray(image)
    for _ in range(data.draw(st.integers(1, 4))):
        offset, length = data.draw(st.sampled_from(reads))
        place = offset + data.draw(st.integers(0, min(length, 1 << 11) - 1))
        patch = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=16),
                st.sampled_from((b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7)),
            )
        )
        changed[place : place + len(patch)] = patch
    found = judge(bytes(changed), cuts=())
    assert isinstance(found, Inspection)
    assert found.safe == (not found.reasons)


@settings(max_examples=effort(100))
@given(
    head=st.sampled_from(
        [b"QFI\xfb\0\0\0\1", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"KDMV", b"COWD", b"vhdxfile",
         b"conectix", b"QED\0", b"WithouFreSpacExt\2\0\0\0", b"LUKS\xba\xbe\0\1",
         b"LUKS\xba\xbe\0\2", b"# Disk DescriptorFile\n", b"x" * 64 + b"\x7f\x10\xda\xbe",
         b"Bochs Virtual HD Image".ljust(64, b"\0") + b"\0\0\2\0", foreign.SCRIPT, b""]
    ),
    rest=st.binary(max_size=2000),
    tail=st.sampled_from((b"", b"conectix".ljust(512, b"\xff"), foreign.dmg()[-512:])),
)  # fmt: skip
def test_any_bytes_behind_a_signature(head: bytes, rest: bytes, tail: bytes) -> None:
    judge(head + rest + tail, cuts=(100,))


def _sparse(path: Path, data: bytes, size: int, tail: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
        if tail:
            file.seek(0, os.SEEK_END)
            file.write(tail)
    return path


@pytest.mark.parametrize("name", ["raw", "mbr", "gpt", "qcow2", "vmdk", "vhdx", "vhd-fixed", "iso"])
def test_sparse_monsters(tmp_path: Path, name: str) -> None:
    size = 10 << 30
    tail = foreign.vhd_footer(2, (1 << 64) - 1, size=size) if name == "vhd-fixed" else b""
    image = b"" if tail else SOUND[name][1]()
    path = _sparse(tmp_path / "image", image, size, tail)
    found = within_limits(lambda: imgtool.inspect(path), memory=32 << 20, seconds=1.0)
    assert (found.safe, found.format) == (True, SOUND[name][0])


def test_the_largest_tables(tmp_path: Path) -> None:
    """An L1 table and a refcount table of 8 MiB, whose entries seem sound one by one."""
    image = ImageBuilder(
        512, header={"l1_size": 1 << 20, "l1_table_offset": 1 << 20, "size": 512,
                     "refcount_table_offset": 10 << 20, "refcount_table_clusters": 128},
    ).build()  # fmt: skip
    path = tmp_path / "image"
    entries = [(1 << 30) + (number << 16) for number in range(1 << 13)]
    with path.open("wb") as file:
        file.write(image)
        file.seek(1 << 20)
        for _ in range((17 << 20) >> 16):
            file.write(struct.pack(f">{len(entries)}Q", *entries))
        file.truncate(2 << 30)
    found = within_limits(lambda: imgtool.inspect(path), memory=32 << 20, seconds=2.0)
    assert codes(found) == {"table-shared"}


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_qcow2_that_was_cut(cluster_bits: int, compressed: bool) -> None:
    builder = ImageBuilder(1 << 20, cluster_bits=cluster_bits)
    for index in range(builder.clusters):
        if compressed:
            builder.compressed(index)
        else:
            builder.data(index)
    image = builder.build()
    assert judge(image).safe
    for part in (0.95, 0.7, 0.5):
        found = judge(image[: int(len(image) * part)])
        assert codes(found) & {"data-outside", "table-outside"}
    # In the midst of an entry.
    assert not judge(image[: l2_table(image) + 3]).safe


@pytest.mark.parametrize(("cluster_bits", "most"), [(9, 4096), (16, 256)])
def test_the_last_of_many_l2_tables_are_looked_at(cluster_bits: int, most: int) -> None:
    cluster, count = 1 << cluster_bits, most + 40
    builder = ImageBuilder(512, cluster_bits=cluster_bits, l1_extra=count)
    image = builder.build()
    first = len(image) + -len(image) % cluster
    # In the L1 table they come in no order.
    tables = [first + number * cluster for number in range(count)]
    for number in (count - most - 1, count - most):
        swapped = sorted(tables, key=lambda place: place % 7919)
        whole = put(image, builder.places["l1"][0], struct.pack(f">{count}Q", *swapped))
        whole = put(whole, tables[number], struct.pack(">Q", 1 << 40))
        storage = CountingStorage(whole.ljust(tables[-1] + cluster, b"\0"))
        found = imgtool.inspect(storage)
        assert codes(found) == ({"data-outside"} if number == count - most else set())
        assert sum(length for _, length in storage.reads) < (17 << 20)


def test_a_table_that_is_too_long() -> None:
    builder = ImageBuilder(512, l1_extra=(2 << 20) + 1)
    found = judge(builder.build())
    assert [item.what for item in found.unchecked] == ["The active L1 table"]
    assert not found.safe


def test_more_than_an_inspection_looks_at() -> None:
    from imgtool.ops.inspect.session import Session
    from imgtool.ops.inspect.tasks import MAX_BYTES, Task

    session = Session()
    task = session.tasks.next()
    assert task is not None

    def greedy():  # type: ignore[no-untyped-def]
        from imgtool.inspection import read

        for _ in range(MAX_BYTES // (1 << 20) + 1):
            yield from read(0, 1 << 20, "Everything")

    steps = 0
    wanting = Task(task.notes, greedy())
    request = session.tasks.step(wanting)
    while request is not None:
        steps += 1
        request = session.tasks.step(wanting, b"")
    assert steps == MAX_BYTES // (1 << 20)
    assert [item.what for item in task.notes.unchecked] == ["Everything"]


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(BadOption, match="Unknown format 'nonsense'"):
        imgtool.inspect(MemoryStorage(b""), format="nonsense")


_AUDIT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
import imgtool
found = imgtool.inspect(sys.argv[1])
home = sys.argv[2]
print(*[path for path in opened if isinstance(path, str) and path.startswith(home)], sep="\\n")
"""


def test_one_file_is_opened(tmp_path: Path) -> None:
    home = tmp_path / "images"
    home.mkdir()
    (home / "base.img").write_bytes(bytes(512))
    builder = ImageBuilder(1 << 20, backing=b"base.img", backing_format=b"raw")
    builder.data(0)
    image = home / "top.qcow2"
    image.write_bytes(builder.build())
    (home / "flat.vmdk").write_bytes(foreign.description("x", 'RW 1 FLAT "base.img" 0'))
    for path in (image, home / "flat.vmdk"):
        done = subprocess.run(
            [sys.executable, "-c", _AUDIT, str(path), str(home)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split() == [str(path)]


def test_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert imgtool.inspect(path).safe
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
