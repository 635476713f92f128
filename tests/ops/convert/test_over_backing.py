"""Converting over a backing image: only what differs is written, and what differs in part."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import referee
from tests.ops.convert.disks import (
    KiB,
    MiB,
    assert_sound,
    content_of,
    disk,
    noise,
    reference,
    to,
    write_raw,
)

VERSIONS = {"v2": {"compat": "0.10"}, "v3": {}, "extended": {"extended_l2": "on"}}


@pytest.fixture(params=VERSIONS)
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    """The options of the target."""
    return dict(VERSIONS[request.param])


def overlay(path: Path, base: Path, commands: list[str], size: int, cluster: str = "4k") -> Path:
    """An overlay by QEMU."""
    referee.create(
        path, size, options={"cluster_size": cluster}, backing=base, backing_format="raw"
    )
    referee.io(path, commands)
    return path


@pytest.mark.parametrize("offload", [False, True])
def test_overlay_of_the_same_base_with_smaller_clusters(
    tmp_path: Path, options: dict[str, object], offload: bool
) -> None:
    # Of most target clusters the plan has a part only: the rest is the same bytes of one file.
    base = write_raw(tmp_path / "base.raw", MiB, (0, noise(MiB)))
    source = overlay(
        tmp_path / "source.qcow2",
        base,
        ["write -z 8k 4k", "write -P 7 100k 4k", "write -z 256k 128k", "write -P 9 1020k 4k"],
        MiB,
    )
    target = tmp_path / "target.qcow2"
    to(
        target,
        source,
        options=options,
        backing="base.raw",
        backing_format="raw",
        copy_offload=offload,
    )
    expected = bytearray(noise(MiB))
    expected[8 * KiB : 12 * KiB] = bytes(4 * KiB)
    expected[100 * KiB : 104 * KiB] = b"\7" * 4 * KiB
    expected[256 * KiB : 384 * KiB] = bytes(128 * KiB)
    expected[1020 * KiB :] = b"\t" * 4 * KiB
    assert content_of(target) == expected
    assert_sound(target, bytes(expected))


@pytest.mark.parametrize("base_size", [512, 300 * KiB, MiB, MiB + 512, 3 * MiB])
@pytest.mark.parametrize("size", [0, 512, MiB, MiB + 512])
def test_sizes(tmp_path: Path, options: dict[str, object], size: int, base_size: int) -> None:
    base = write_raw(tmp_path / "base.raw", base_size, (0, noise(base_size)))
    # Some of it is the base's, some is zero where the base has data, some is new.
    content = bytearray(noise(base_size)[:size].ljust(size, b"\0"))
    content[70 * KiB : 200 * KiB] = bytes(len(content[70 * KiB : 200 * KiB]))
    content[400 * KiB : 401 * KiB] = noise(KiB, 5)[: len(content[400 * KiB : 401 * KiB])]
    content[-100:] = noise(100, 9)[:size]
    source = write_raw(tmp_path / "source.raw", size, (0, bytes(content)))
    target = tmp_path / "target.qcow2"
    to(target, source, options=options, backing="base.raw", backing_format="raw")
    assert content_of(target) == content
    assert_sound(target, bytes(content))
    assert referee.info(target)["backing-filename"] == "base.raw"
    assert base.read_bytes() == noise(base_size)


def test_compressed(tmp_path: Path, options: dict[str, object]) -> None:
    write_raw(tmp_path / "base.raw", MiB, (0, noise(MiB)))
    content = bytearray(noise(MiB))
    content[100 * KiB : 300 * KiB] = b"x" * 200 * KiB
    content[500 * KiB : 700 * KiB] = bytes(200 * KiB)
    source = write_raw(tmp_path / "source.raw", MiB, (0, bytes(content)))
    target = tmp_path / "target.qcow2"
    to(target, source, options=options, backing="base.raw", backing_format="raw", compress=True)
    assert_sound(target, bytes(content))
    # Six clusters differ; two more are zero where the base has data.
    assert referee.check(target)["compressed-clusters"] == 6


def test_the_same_adds_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    base = write_raw(tmp_path / "base.raw", 4 * MiB, (0, noise(3 * MiB)))
    copy = write_raw(tmp_path / "copy.raw", 4 * MiB, (0, noise(3 * MiB)))
    same = overlay(tmp_path / "same.qcow2", base, [], 4 * MiB)
    for number, source in enumerate((base, copy, same)):
        target = tmp_path / f"target-{number}.qcow2"
        to(target, source, options=options, backing="base.raw", backing_format="raw")
        assert referee.check(target).get("allocated-clusters", 0) == 0
        assert content_of(target) == content_of(base)


def test_zero_over_data_takes_no_room(tmp_path: Path) -> None:
    write_raw(tmp_path / "base.raw", 8 * MiB, (0, noise(8 * MiB)))
    source = write_raw(tmp_path / "source.raw", 8 * MiB)
    target = tmp_path / "target.qcow2"
    to(target, source, backing="base.raw", backing_format="raw")
    assert target.stat().st_size < 512 * KiB
    assert_sound(target, bytes(8 * MiB))


def test_backing_name_with_the_file_prefix(tmp_path: Path) -> None:
    write_raw(tmp_path / "base.raw", MiB, (0, noise(MiB)))
    content = disk(MiB, (0, noise(MiB)), (5, b"new"))
    source = write_raw(tmp_path / "source.raw", MiB, (0, content))
    target = tmp_path / "target.qcow2"
    to(target, source, backing=f"file:{tmp_path}/base.raw", backing_format="raw")
    assert content_of(target) == content


def test_unknown_base_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "source.raw", MiB)
    target = tmp_path / "target.qcow2"
    with pytest.raises(Exception, match=r"none\.raw"):
        to(target, reference(source), backing="none.raw", backing_format="raw")
    assert not target.exists()
