"""What is written last, and what waits for what: the header of a new image, barriers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgtool.chain import Opener
from imgtool.ops.create import create
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.kit.disks import ANY, open_disk
from tests.kit.faults import Event, RecordingStorage
from tests.kit.qcow2 import ImageBuilder
from tests.ops.convert.disks import KiB, MiB, assert_sound, noise, reference, to, write_raw

SIZE = 5 * MiB + 3 * 512

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "v2": {"options": {"compat": "0.10"}},
    "512": {"options": {"cluster_size": 512}},
    "2M": {"options": {"cluster_size": "2M"}},
    "refcount-1": {"options": {"refcount_bits": 1}},
    "refcount-64": {"options": {"refcount_bits": 64}},
    "extended": {"options": {"extended_l2": "on"}},
    "lazy": {"options": {"lazy_refcounts": "on"}},
    "metadata": {"options": {"preallocation": "metadata"}},
    "falloc": {"options": {"preallocation": "falloc"}},
    "full": {"options": {"preallocation": "full"}},
    "zlib": {"compress": True},
    "zstd": {"compress": True, "options": {"compression_type": "zstd"}},
    "all": {"sparse_size": 0},
    "data-file": {"options": {"data_file": "data.raw"}},
    "data-file-raw": {"options": {"data_file": "data.raw", "data_file_raw": "on"}},
    "data-file-metadata": {"options": {"data_file": "data.raw", "preallocation": "metadata"}},
    "backed": {"backing": "base.raw", "backing_format": "raw"},
    "backed-extended": {
        "backing": "base.raw",
        "backing_format": "raw",
        "options": {"extended_l2": "on", "preallocation": "metadata"},
    },
    "offload": {"copy_offload": True},
}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is done, in order, to files that are made while the test runs."""
    events: list[Event] = []
    make = FileStorage.create.__func__  # type: ignore[attr-defined]

    def recorded(cls: type[FileStorage], path: str, **options: Any) -> Storage:
        name = Path(path).suffix.lstrip(".")
        return RecordingStorage(make(cls, path, **options), events, name)

    monkeypatch.setattr(FileStorage, "create", classmethod(recorded))
    # Metadata is written now and then, not only in the end.
    monkeypatch.setattr("imgtool.formats.qcow2.metadata.DIRTY_LIMIT", 200 * KiB)
    return events


def header_last(log: list[Event], *, synced: bool) -> None:
    """The header is written once, whole, and behind everything else there is."""
    changes = [event for event in log if event.kind in ("write", "zero", "discard", "preallocate")]
    headers = [event for event in changes if event.file == "qcow2" and event.offset == 0]
    assert len(headers) == 1
    assert changes[-1] is headers[0]
    place = log.index(headers[0])
    assert all(event.kind == "flush" for event in log[place + 1 :])
    # Each file is flushed behind its last change and before the header, and the header itself.
    if synced:
        for file in {event.file for event in changes}:
            before = [event.kind for event in log[:place] if event.file == file]
            assert not before or before[-1] == "flush", file
        assert log[-1] == Event("qcow2", "flush")


@pytest.mark.parametrize("name", OPTIONS)
def test_header_last_in_convert(tmp_path: Path, log: list[Event], name: str) -> None:
    content = bytearray(SIZE)
    content[: 2 * MiB] = noise(2 * MiB)
    content[3 * MiB : 4 * MiB] = b"text" * 256 * KiB
    content[-100:] = noise(100)
    source = write_raw(tmp_path / "source.raw", SIZE, (0, bytes(content)))
    write_raw(tmp_path / "base.raw", SIZE, (MiB, noise(MiB)))
    target = tmp_path / "target.qcow2"
    to(target, source, target_cache="writeback", workers=3, **OPTIONS[name])
    header_last(log, synced=True)
    if not OPTIONS[name].get("options", {}).get("data_file"):
        assert_sound(target, bytes(content))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("zlib", "all")])
def test_header_last_in_create(tmp_path: Path, log: list[Event], name: str) -> None:
    write_raw(tmp_path / "base.raw", SIZE)
    create(
        tmp_path / "target.qcow2",
        SIZE,
        format="qcow2",
        options=OPTIONS[name].get("options"),
        backing_file=OPTIONS[name].get("backing"),
        backing_format=OPTIONS[name].get("backing_format"),
        opener=Opener(policy=ANY),
    )
    header_last(log, synced=True)
    assert referee.info(tmp_path / "target.qcow2")["virtual-size"] == SIZE


def test_header_last_in_a_large_table(tmp_path: Path, log: list[Event]) -> None:
    source = write_raw(tmp_path / "source.raw", 1 << 40, ((1 << 40) - 512, noise(512)))
    to(tmp_path / "target.qcow2", source, options={"cluster_size": "64k"})
    header_last(log, synced=True)


def test_raw_gets_its_length_last(tmp_path: Path, log: list[Event]) -> None:
    source = write_raw(tmp_path / "source.raw", SIZE, (0, noise(MiB)))
    to(tmp_path / "target.raw", source, target_cache="writeback")
    kinds = [event.kind for event in log]
    assert kinds[-3:] == ["flush", "truncate", "flush"]
    assert log[-2].offset == SIZE
    assert set(kinds[:-3]) <= {"write"}


# An image that exists


def kind_of(event: Event, places: dict[str, tuple[int, int]]) -> str:
    """What structure an event concerns: of what it overlaps, by the builder's word."""
    if event.file != "qcow2" or event.kind == "flush":
        return event.kind if event.kind == "flush" else "data"
    for name, (offset, length) in places.items():
        if offset <= event.offset < offset + max(length, 1 << 14):
            return name.split("-")[0]
    return "data"


@pytest.fixture(params=[False, True], ids=["inside", "data-file"])
def existing(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, list[Event], Any]:
    """A writable image with two mapped L2 tables, its log, and where its structures are."""
    log: list[Event] = []
    builder = ImageBuilder(128 * MiB, cluster_bits=14, external=request.param)
    builder.data(0)
    builder.data(3000)
    inner = MemoryStorage(builder.build())
    children = {}
    if request.param:
        data = MemoryStorage(bytes(builder.data_file))
        children["data-file"] = reference(RecordingStorage(data, log, "data"), "raw")
    storage = RecordingStorage(inner, log, "qcow2")
    device = open_disk(storage, "qcow2", policy=ANY, writable=True, children=children)
    return device, log, builder.places


def test_flush_in_order(existing: tuple[Any, list[Event], Any]) -> None:
    device, log, places = existing
    external = device.header.has_data_file
    log.clear()
    with device:
        # Into an L2 table that is there, and into one that has yet to be made.
        device.write_at(5 << 14, noise(1 << 14))
        device.write_at(100 * MiB, noise(100))
        assert "flush" not in [event.kind for event in log]
        device.flush()
        order = [kind_of(event, places) for event in log]
        new_table = device.l1[100 * MiB // device.header.geometry.l2_coverage] & ~(1 << 63)
        steps = [
            "new-l2" if event.kind == "write" and event.offset == new_table else step
            for event, step in zip(log, order, strict=True)
        ]
        log.clear()
    # A data file is waited for once.
    barrier = ["flush", "flush"] if external else ["flush"]
    assert steps == [
        *("data",) * steps.count("data"),
        *barrier,
        "refcount",
        "flush",
        "l2",
        "new-l2",
        "flush",
        "l1",
        "flush",
    ], steps
    assert steps.count("data") >= 2


def test_flush_when_the_refcount_table_grows() -> None:
    log: list[Event] = []
    builder = ImageBuilder(64 * MiB, cluster_bits=9, refcount_order=6)
    builder.data(0)
    storage = RecordingStorage(MemoryStorage(builder.build()), log, "qcow2")
    device = open_disk(storage, "qcow2", writable=True)
    with device:
        log.clear()
        # 64 blocks of 64 refcounts each reach 2 MiB.
        device.write_at(MiB, noise(MiB) * 3)
        device.flush()
        writes = [event for event in log if event.kind == "write"]
        header = next(event for event in writes if event.offset == 0)
        table = device.metadata.allocator.table_offset
        place = {
            "table": next(i for i, event in enumerate(log) if event.offset == table),
            "header": log.index(header),
            "l1": next(
                i
                for i, event in enumerate(log)
                if event.kind == "write"
                and event.offset // 512 * 512
                in range(device.header.l1_table_offset, device.header.l1_table_offset + 8192, 512)
            ),
        }
        blocks = [entry for entry in device.metadata.allocator.table if entry]
        last_block = max(
            i for i, event in enumerate(log[: place["header"]]) if event.offset in blocks
        )
        # Blocks, then the table that names them, then the header that names it, then the mapping.
        assert last_block < place["table"] < place["header"] < place["l1"]
        for first, second in ((last_block, place["table"]), (place["table"], place["header"])):
            assert any(event.kind == "flush" for event in log[first:second])
        assert log[place["header"] + 1].kind == "flush"


def test_freed_clusters_are_not_handed_out_before_the_mapping_is_durable() -> None:
    log: list[Event] = []
    builder = ImageBuilder(4 * MiB, cluster_bits=14)
    for index in range(8):
        builder.data(index)
    inner = MemoryStorage(builder.build())
    with open_disk(RecordingStorage(inner, log, "qcow2"), "qcow2", writable=True) as device:
        old = [extent.host_offset for extent in device.extents(0, 8 << 14)]
        device.write_zeroes(0, 8 << 14, unmap=True)
        device.write_at(MiB, noise(8 << 14))
        used = {event.offset for event in log if event.kind == "write"}
        assert not used & set(old)
        device.flush()
        log.clear()
        device.write_at(2 * MiB, noise(8 << 14))
        assert min(event.offset for event in log if event.kind == "write") in old
