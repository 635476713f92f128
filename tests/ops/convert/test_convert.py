"""Conversions in every direction and with every option, next to what qemu-img reads back."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from imgtool.errors import ImageError
from imgtool.extent import Kind
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.storage.memory import MemoryStorage
from tests.kit import referee
from tests.kit.disks import ANY, open_disk
from tests.kit.faults import FailingStorage, bad_ranges
from tests.ops.convert.disks import (
    GiB,
    KiB,
    MiB,
    TiB,
    assert_sound,
    content_of,
    disk,
    noise,
    reference,
    to,
    write_raw,
)

SIZE = 5 * MiB + 5 * 512


def sample() -> bytes:
    """Noise, text, zeros that are written and zeros that are not, none of it aligned."""
    content = bytearray(SIZE)
    content[1000 : 300 * KiB] = noise(300 * KiB - 1000)
    content[MiB : 2 * MiB] = b"some text that repeats, " * (MiB // 24) + b"." * 16
    content[2 * MiB + 5 * KiB : 2 * MiB + 6 * KiB] = noise(KiB, 1)
    content[3 * MiB + 4096 : 3 * MiB + 8192] = noise(4096, 2)
    content[-1:] = b"!"
    return bytes(content)


SAMPLE = sample()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The sample, some of it in holes and some of its zeros stored."""
    path = write_raw(tmp_path / "sample.raw", SIZE)
    with path.open("r+b") as file:
        for start in (*range(0, 3 * MiB, 64 * KiB), 3 * MiB, SIZE // 4096 * 4096):
            file.seek(start)
            file.write(SAMPLE[start : start + 64 * KiB])
    assert path.read_bytes() == SAMPLE
    return path


TARGETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "v2": {"options": {"compat": "0.10"}},
    **{
        f"cluster-{size}": {"options": {"cluster_size": size}}
        for size in ("512", "1k", "4k", "32k", "256k", "2M")
    },
    **{f"refcount-{bits}": {"options": {"refcount_bits": bits}} for bits in (1, 2, 4, 8, 32, 64)},
    "extended": {"options": {"extended_l2": "on"}},
    "extended-16k": {"options": {"extended_l2": "on", "cluster_size": "16k"}},
    "extended-2M": {"options": {"extended_l2": "on", "cluster_size": "2M"}},
    "lazy": {"options": {"lazy_refcounts": "on"}},
    "nocow": {"options": {"nocow": "on"}},
    "metadata": {"options": {"preallocation": "metadata"}},
    "falloc": {"options": {"preallocation": "falloc"}},
    "full": {"options": {"preallocation": "full"}},
    "zlib": {"compress": True},
    "zlib-512": {"compress": True, "options": {"cluster_size": 512}},
    "zlib-2M": {"compress": True, "options": {"cluster_size": "2M"}},
    "zlib-extended": {"compress": True, "options": {"extended_l2": "on"}},
    "zlib-v2": {"compress": True, "options": {"compat": "0.10"}},
    "zlib-refcount-1": {"compress": True, "options": {"refcount_bits": 1}},
    "zlib-0": {"compress": True, "compression_level": 0},
    "zlib-9": {"compress": True, "compression_level": 9},
    "zlib-all": {"compress": True, "sparse_size": 0},
    "zstd": {"compress": True, "options": {"compression_type": "zstd"}},
    "zstd-19": {
        "compress": True,
        "compression_level": 19,
        "options": {"compression_type": "zstd"},
    },
    **{
        f"sparse-{size}": {"sparse_size": size}
        for size in (0, 512, 1024, 3 * KiB, 4096, 6 * KiB, 64 * KiB, MiB)
    },
    "sparse-512-extended": {"sparse_size": 512, "options": {"extended_l2": "on"}},
    "one-worker": {"workers": 1},
    "many-workers": {"workers": 16},
    "offload": {"copy_offload": True},
    "offload-512": {"copy_offload": True, "options": {"cluster_size": 512}},
    "data-file": {"options": {"data_file": "data.raw"}},
    "data-file-raw": {"options": {"data_file": "data.raw", "data_file_raw": "on"}},
    "direct": {"target_cache": "none"},
    "writethrough": {"target_cache": "writethrough"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_to_qcow2_and_back(tmp_path: Path, raw: Path, name: str) -> None:
    arguments = dict(TARGETS[name])
    options = dict(arguments.pop("options", {}))
    if "data_file" in options:
        options["data_file"] = str(tmp_path / options["data_file"])
    target, back = tmp_path / "target.qcow2", tmp_path / "back.raw"
    to(target, raw, options=options, **arguments)
    assert_sound(target, SAMPLE)
    if name == "data-file-raw":
        assert (tmp_path / "data.raw").read_bytes()[:SIZE] == SAMPLE
    to(back, target)
    assert back.read_bytes() == SAMPLE
    # And into another image, from an image.
    again = tmp_path / "again.qcow2"
    to(again, target, options={"cluster_size": "8k"}, compress=bool(arguments.get("compress")))
    assert_sound(again, SAMPLE)


RAW_TARGETS = {
    **{name: TARGETS[name] for name in ("plain", "nocow", "falloc", "full", "offload", "direct")},
    **{name: TARGETS[name] for name in TARGETS if name.startswith("sparse-") and "ext" not in name},
}


@pytest.mark.parametrize("name", RAW_TARGETS)
def test_to_raw(tmp_path: Path, raw: Path, name: str) -> None:
    target = tmp_path / "target.raw"
    to(target, raw, **RAW_TARGETS[name])
    assert target.read_bytes() == SAMPLE
    stored = target.stat().st_blocks * 512
    if name in ("sparse-0", "falloc", "full"):
        assert stored >= SIZE - 4096
    else:
        assert stored < SIZE - MiB


def by_qemu(path: Path, raw: Path, options: dict[str, object], compress: bool) -> Path:
    referee.convert(raw, path, format="raw", to="qcow2", options=options, compress=compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"compat": "0.10"},
        {"cluster_size": 512},
        {"cluster_size": "2M"},
        {"extended_l2": True},
        {"compression_type": "zstd"},
    ],
    ids=str,
)
def test_from_qemu_s_images(
    tmp_path: Path, raw: Path, options: dict[str, object], compress: bool
) -> None:
    source = by_qemu(tmp_path / "source.qcow2", raw, options, compress)
    target = tmp_path / "target.raw"
    to(target, source)
    assert target.read_bytes() == SAMPLE
    image = tmp_path / "image.qcow2"
    to(image, source, options={"cluster_size": "128k"})
    assert_sound(image, SAMPLE)


def test_snapshot(tmp_path: Path, raw: Path) -> None:
    source = by_qemu(tmp_path / "source.qcow2", raw, {}, False)
    referee.must("qemu-img", "snapshot", "-c", "then", source)
    referee.io(source, ["write -P 9 0 1M", "write -z 2M 2M"])
    for name, option in (("name", {"snapshot.name": "then"}), ("id", {"snapshot": "1"})):
        target = tmp_path / f"{name}.raw"
        to(target, reference(source, "qcow2", **option))
        assert target.read_bytes() == SAMPLE
    with pytest.raises(ImageError, match="snapshot"):
        to(tmp_path / "none.raw", reference(source, "qcow2", snapshot="now"))
    assert not (tmp_path / "none.raw").exists()


def test_chain(tmp_path: Path, raw: Path) -> None:
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    referee.create(middle, SIZE + 64 * KiB, backing=raw, backing_format="raw")
    referee.io(middle, ["write -P 5 100k 3k", "write -z 1M 128k"])
    referee.create(top, SIZE + MiB, backing=middle, backing_format="qcow2")
    referee.io(top, [f"write -P 6 {SIZE} 5k"])
    truth = referee.contents(top, "qcow2", tmp_path)
    for target in (tmp_path / "target.raw", tmp_path / "target.qcow2"):
        to(target, top)
        assert content_of(target) == truth


# Several sources


def test_one_behind_the_other(tmp_path: Path) -> None:
    sizes = [512, 0, 64 * KiB, 700 * 512, MiB + 512, 512, 0]
    sources = []
    for number, size in enumerate(sizes):
        path = write_raw(tmp_path / f"{number}.raw", size, (0, noise(size, number)))
        if number % 2:
            image = tmp_path / f"{number}.qcow2"
            to(image, path, compress=number % 4 == 1, options={"cluster_size": "4k"})
            path = image
        sources.append(path)
    whole = b"".join(noise(size, number) for number, size in enumerate(sizes))
    for options in ({}, {"compress": True}, {"sparse_size": 0}, {"copy_offload": True}):
        target = tmp_path / "target.qcow2"
        to(target, *sources, **options)
        assert_sound(target, whole)
    to(tmp_path / "target.raw", *sources)
    assert (tmp_path / "target.raw").read_bytes() == whole


def test_the_same_source_twice(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "one.raw", 3 * 512, (0, noise(3 * 512)))
    to(tmp_path / "two.raw", source, source)
    assert (tmp_path / "two.raw").read_bytes() == noise(3 * 512) * 2


# What is not a file


@pytest.mark.parametrize("compress", [False, True])
def test_memory(compress: bool) -> None:
    source = reference(MemoryStorage(SAMPLE), "raw")
    image = MemoryStorage()
    to(image, source, format="qcow2", compress=compress)
    back = MemoryStorage()
    to(back, reference(MemoryStorage(image.getvalue()), "qcow2"), format="raw")
    assert back.getvalue() == SAMPLE


def test_file_objects(tmp_path: Path, raw: Path) -> None:
    target = tmp_path / "target.qcow2"
    to(target, reference(io.BytesIO(SAMPLE), "raw"))
    assert_sound(target, SAMPLE)
    with target.open("rb") as file:
        to(tmp_path / "back.raw", reference(file, "qcow2"))
        assert not file.closed
    assert (tmp_path / "back.raw").read_bytes() == SAMPLE
    there = io.BytesIO(bytes(SIZE + 100))
    to(there, raw, format="raw", create=False)
    assert there.getvalue()[:SIZE] == SAMPLE


# Sizes


@pytest.mark.parametrize("size", [0, 512, 1024, 65536, 65536 - 512, 65536 + 512])
@pytest.mark.parametrize("name", ["plain", "zlib", "metadata", "cluster-512", "extended-2M", "v2"])
def test_small_sizes(tmp_path: Path, size: int, name: str) -> None:
    content = noise(size, 4)
    source = write_raw(tmp_path / "source.raw", size, (0, content))
    target, back = tmp_path / "target.qcow2", tmp_path / "back.raw"
    to(target, source, **TARGETS[name])
    found = referee.check(target)
    assert found["exit"] == 0, found
    assert referee.info(target)["virtual-size"] == size
    to(back, target)
    assert back.read_bytes() == content


def test_huge_and_empty(tmp_path: Path) -> None:
    ends = ((0, noise(5000)), (TiB - 700, noise(700)))
    source = write_raw(tmp_path / "source.raw", TiB, *ends)
    target, back = tmp_path / "target.qcow2", tmp_path / "back.raw"
    start = time.process_time()
    to(target, source)
    to(back, target)
    assert time.process_time() - start < 2
    assert back.stat().st_size == TiB
    assert back.stat().st_blocks * 512 < MiB
    assert target.stat().st_size < 2 * MiB
    with back.open("rb") as file:
        for offset, data in ends:
            file.seek(offset)
            assert file.read(len(data)) == data
    assert referee.check(target)["exit"] == 0


def test_64_tib(tmp_path: Path) -> None:
    source, target = tmp_path / "source.qcow2", tmp_path / "target.qcow2"
    referee.create(source, 64 * TiB)
    start = time.process_time()
    to(target, source)
    assert time.process_time() - start < 2
    assert referee.info(target)["virtual-size"] == 64 * TiB
    assert target.stat().st_blocks * 512 < MiB


def test_compressed_clusters_spread_over_a_terabyte(tmp_path: Path) -> None:
    pieces = [(number * 97 * GiB // 10, noise(512, number)) for number in range(100)]
    source = write_raw(tmp_path / "source.raw", TiB, *pieces)
    target = tmp_path / "target.qcow2"
    to(target, source, compress=True)
    with open_disk(target) as device:
        assert sum(extent.kind is Kind.COMPRESSED for extent in device.extents()) == 100
        for offset, data in pieces:
            assert device.read_at(offset, 512) == data


# The same to the byte, however many threads


@pytest.mark.parametrize(
    "name", ["plain", "zlib", "zstd", "extended", "metadata", "refcount-1", "cluster-512", "all"]
)
def test_number_of_threads_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Metadata goes out now and then, and that must happen at the same places.
    monkeypatch.setattr("imgtool.formats.qcow2.metadata.DIRTY_LIMIT", 300 * KiB)
    pieces = [(number * 3 * MiB + 1000 * number, noise(MiB, number)) for number in range(7)]
    source = write_raw(tmp_path / "source.raw", 24 * MiB, *pieces)
    arguments: dict[str, Any] = TARGETS.get(name, {"sparse_size": 0})
    made = []
    for workers in (1, 2, 3, 8):
        target = tmp_path / "target.qcow2"
        to(target, source, workers=workers, **arguments)
        made.append(target.read_bytes())
    assert made.count(made[0]) == len(made)


# Zeros


def test_shortest_run_of_zeros(tmp_path: Path) -> None:
    # A hole of 8 KiB and one of 64 KiB, both stored as zeros.
    content = bytearray(noise(MiB))
    content[256 * KiB : 264 * KiB] = bytes(8 * KiB)
    content[512 * KiB : 576 * KiB] = bytes(64 * KiB)
    source = write_raw(tmp_path / "source.raw", MiB, (0, bytes(content)))
    for sparse, left_out in (
        (0, 0),
        (512, 72),
        (4096, 72),
        (8192, 72),
        (9 * KiB, 64),
        (64 * KiB, 64),
        (65 * KiB, 0),
        (MiB, 0),
    ):
        target = tmp_path / "target.raw"
        to(target, source, sparse_size=sparse)
        assert target.read_bytes() == content
        assert MiB - target.stat().st_blocks * 512 == left_out * KiB, sparse


def test_written_zeros_become_nothing(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", 8 * MiB, (0, bytes(8 * MiB)))
    target = tmp_path / "target.qcow2"
    to(target, source)
    assert referee.check(target).get("allocated-clusters", 0) == 0
    to(target, source, sparse_size=0)
    assert referee.check(target)["allocated-clusters"] == 128


def test_incompressible_clusters_are_stored_as_they_are(tmp_path: Path) -> None:
    content = noise(MiB) + b"a" * MiB + noise(MiB, 3)
    source = write_raw(tmp_path / "source.raw", 3 * MiB, (0, content))
    target = tmp_path / "target.qcow2"
    to(target, source, compress=True)
    assert_sound(target, content)
    with open_disk(target) as device:
        kinds = [extent.kind for extent in device.extents()]
    assert kinds == [Kind.DATA, Kind.COMPRESSED, Kind.DATA]


# Pace, progress, and damage


def test_rate_limit(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", 4 * MiB, (0, noise(4 * MiB)))
    start = time.monotonic()
    to(tmp_path / "target.raw", source, rate_limit=8 * MiB)
    assert time.monotonic() - start >= 0.45
    # Holes are free.
    sparse = write_raw(tmp_path / "sparse.raw", TiB)
    start = time.monotonic()
    to(tmp_path / "target.raw", sparse, rate_limit=MiB)
    assert time.monotonic() - start < 5


def test_progress(tmp_path: Path, raw: Path) -> None:
    seen: list[tuple[int, int]] = []
    to(
        tmp_path / "target.qcow2",
        raw,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (SIZE, SIZE)
    assert len(seen) > 2
    empty = write_raw(tmp_path / "empty.raw", 0)
    seen.clear()
    to(tmp_path / "target.qcow2", empty, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 0)]


def test_salvage(tmp_path: Path) -> None:
    # Single sectors, first and last among them, and a run over the end of a window.
    bad = [(0, 512), (100 * KiB + 512, 512), (2 * MiB - 1024, 3 * 1024), (SIZE - 512, 512)]
    expected = bytearray(noise(SIZE))
    for offset, length in bad:
        expected[offset : offset + length] = bytes(length)
    for options in ({}, {"compress": True}, {"options": {"extended_l2": "on"}}):
        warnings: list[str] = []
        source = FailingStorage(MemoryStorage(noise(SIZE)), bad_ranges(*bad))
        target = tmp_path / "target.qcow2"
        to(target, reference(source, "raw"), salvage=True, warn=warnings.append, **options)
        assert_sound(target, bytes(expected))
        places = {int(text.split(" byte ")[1].split(":")[0]) for text in warnings}
        assert places == {offset + step for offset, length in bad for step in range(0, length, 512)}
        assert all("Input/output error" in text for text in warnings)


def test_salvage_of_an_image(tmp_path: Path, raw: Path) -> None:
    image = by_qemu(tmp_path / "image.qcow2", raw, {"cluster_size": "4k"}, True)
    data = bytearray(image.read_bytes())
    with open_disk(image, policy=ANY) as device:
        assert isinstance(device, Qcow2Device)
        broken = next(extent for extent in device._map(MiB, MiB) if extent.kind is Kind.COMPRESSED)
    assert broken.host_offset is not None
    data[broken.host_offset : broken.host_offset + 20] = b"\xff" * 20
    image.write_bytes(data)
    target = tmp_path / "target.raw"
    with pytest.raises(ImageError, match=f"reading at byte {broken.offset}"):
        to(target, image)
    warnings: list[str] = []
    to(target, image, salvage=True, warn=warnings.append)
    assert len(warnings) == 8
    found = target.read_bytes()
    assert found[: broken.offset] == SAMPLE[: broken.offset]
    assert found[broken.offset : broken.offset + 4096] == bytes(4096)
    assert found[broken.offset + 4096 :] == SAMPLE[broken.offset + 4096 :]


def test_disk_helper() -> None:
    assert disk(10, (2, b"ab")) == b"\0\0ab\0\0\0\0\0\0"
