"""``compact``: what is given back, what stays, and that it may be killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import imgtool
from tests.kit import referee
from tests.kit.effort import effort
from tests.test_readme import ROOT

KiB, MiB = 1 << 10, 1 << 20


def _fill(path: Path, seed: int = 1) -> bytes:
    """Write data, and zeros as data, in pieces of all lengths; return the contents."""
    chance = random.Random(seed)
    with imgtool.open(path, format=path.suffix[1:], writable=True) as disk:
        offset = 0
        while offset < disk.size:
            length = min(disk.size - offset, chance.choice((512, 4 * KiB, 70 * KiB, 300 * KiB)))
            if chance.random() < 0.7:
                disk.write_at(offset, bytes([chance.choice((0, 0, 7))]) * length)
            offset += length
        return disk.read_at(0, disk.size)


def _contents(path: Path) -> bytes:
    with imgtool.open(path, format=path.suffix[1:]) as disk:
        return disk.read_at(0, disk.size)


def _sound(path: Path) -> None:
    found = referee.check(path)
    assert found["exit"] == 0, found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": "4k"},
        {"cluster_size": "2M"},
        {"compat": "0.10"},
        {"extended_l2": True, "cluster_size": "128k"},
        {"preallocation": "full"},
        {"data_file": "disk.data"},
        {"data_file": "disk.data", "data_file_raw": True},
    ],
    ids=str,
)
def test_zeros_go_and_data_stays(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 6 * MiB + 512, **options)  # type: ignore[arg-type]
    content = _fill(path)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(3 * MiB, bytes(3 * MiB))
    content = content[: 3 * MiB] + bytes(3 * MiB) + content[6 * MiB :]
    found = imgtool.compact(path)
    assert found.after.stored <= found.before.stored - 2 * MiB
    assert found.after.length <= found.before.length
    assert _contents(path) == content
    _sound(path) if "data_file" not in options else referee.must(
        "qemu-img", "check", path.name, cwd=tmp_path
    )
    # Nothing is left to do.
    again = imgtool.compact(path)
    assert again.after.stored == again.before.stored == found.after.stored


def test_raw(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    imgtool.create(path, 4 * MiB, format="raw", preallocation="full")
    content = _fill(path)
    found = imgtool.compact(path, format="raw")
    assert found.after.stored < found.before.stored - MiB
    assert found.after.length == found.before.length == 4 * MiB
    assert _contents(path) == content
    with pytest.raises(imgtool.ImageError, match="probing guessed raw"):
        imgtool.compact(path)


@pytest.mark.parametrize("compat", ["1.1", "0.10"])
def test_zeros_hide_what_is_below(tmp_path: Path, compat: str) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, 2 * MiB)
    with imgtool.open(base, writable=True) as disk:
        disk.write_at(0, b"\5" * 2 * MiB)
    imgtool.create(path, 4 * MiB, backing_file=base.name, backing_format="qcow2", compat=compat)
    content = _fill(path)
    before = base.read_bytes()
    found = imgtool.compact(path)
    assert found.after.stored < found.before.stored
    assert _contents(path) == content
    assert base.read_bytes() == before
    _sound(path)


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_encrypted(tmp_path: Path, format: str) -> None:
    """Zeros of the guest are found behind the encryption, where there is anything to give back."""
    path, password = tmp_path / f"disk.{format}", "a passphrase"
    times = {"encrypt_iter_time": 1} if format == "qcow2" else {"iter_time": 1}
    imgtool.create(path, 4 * MiB, format=format, password=password, **times)
    with imgtool.open(path, format=format, writable=True, password=password) as disk:
        disk.write_at(0, b"sec!" * MiB)
        disk.write_at(MiB, bytes(2 * MiB))
        before = disk.read_at(0, disk.size)
    found = imgtool.compact(path, format=format, password=password)
    given_back = found.before.stored - found.after.stored
    assert given_back == (2 * MiB if format == "qcow2" else 0)
    with imgtool.open(path, format=format, password=password) as disk:
        assert disk.read_at(0, disk.size) == before


def test_snapshots_keep_what_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 4 * MiB, cluster_size="16k")
    first = _fill(path, 1)
    imgtool.create_snapshot(path, "one")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(MiB, bytes(2 * MiB))
    second = _contents(path)
    found = imgtool.compact(path)
    assert found.after.stored <= found.before.stored - MiB
    assert _contents(path) == second
    with imgtool.open(path, snapshot="one") as disk:
        assert disk.read_at(0, disk.size) == first
    _sound(path)
    imgtool.apply_snapshot(path, "one")
    assert _contents(path) == first


def test_a_disk_that_became_all_zeros_shrinks_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 64 * MiB, cluster_size="4k")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"\1" * 32 * MiB)
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, bytes(32 * MiB))
    found = imgtool.compact(path)
    assert found.before.length > 32 * MiB
    assert found.after.length < MiB
    assert _contents(path) == bytes(64 * MiB)
    _sound(path)


def test_leaks_and_free_clusters_go(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 4 * MiB)
    content = _fill(path)
    data = bytearray(path.read_bytes())
    last = len(data) >> 16
    data += b"old data" * (MiB // 8)
    # One cluster behind the end is counted as used, and nobody uses it.
    block = int.from_bytes(data[65536 : 65536 + 8], "big")
    data[block + 2 * (last + 3) + 1] = 1
    path.write_bytes(data)
    assert referee.check(path)["leaks"] == 1
    length = path.stat().st_size
    found = imgtool.compact(path)
    assert found.after.length <= length - MiB
    assert _contents(path) == content
    _sound(path)


def test_compressed_clusters_stay_compressed(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "disk.raw", 4 * MiB)
    content = _fill(tmp_path / "disk.raw")
    path = tmp_path / "disk.qcow2"
    imgtool.convert(tmp_path / "disk.raw", path, compress=True)
    size = path.stat().st_size
    imgtool.compact(path)
    assert path.stat().st_size <= size
    imgtool.compact(path, path)
    assert path.stat().st_size <= size
    assert _contents(path) == content
    _sound(path)


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 4 * MiB)
    _fill(path)
    data = bytearray(path.read_bytes())
    # The first refcount block says that nothing is in use.
    block = int.from_bytes(data[65536 : 65536 + 8], "big")
    data[block : block + 65536] = bytes(65536)
    path.write_bytes(data)
    with pytest.raises(imgtool.CorruptImage, match="repaired"):
        imgtool.compact(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_size": 4096, "refcount_bits": 64, "lazy_refcounts": True},
        {"compat": "0.10", "cluster_size": 2 * MiB},
        {"extended_l2": True, "compression_type": "zstd"},
    ],
    ids=str,
)
def test_a_new_image_is_like_the_old_one(tmp_path: Path, options: dict[str, object]) -> None:
    path, new = tmp_path / "disk.qcow2", tmp_path / "new.qcow2"
    imgtool.create(path, 4 * MiB, **options)  # type: ignore[arg-type]
    content = _fill(path)
    path.chmod(0o640)
    imgtool.compact(path, new)
    assert _contents(new) == content
    specific = imgtool.info(path).format_specific
    assert imgtool.info(new).format_specific == specific
    imgtool.compact(path, path)
    assert _contents(path) == content
    assert imgtool.info(path).format_specific == specific
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow2", "new.qcow2"]
    _sound(new)


def test_a_new_overlay_keeps_its_backing_file(tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, 4 * MiB)
    _fill(base, 2)
    imgtool.create(path, backing_file=base.name, backing_format="qcow2")
    content = _fill(path, 3)
    imgtool.compact(path, path)
    assert imgtool.info(path).backing_filename == base.name
    assert _contents(path) == content
    (tmp_path / "sub").mkdir()
    imgtool.compact(path, tmp_path / "sub" / "top.qcow2")
    assert referee.compare(path, tmp_path / "sub" / "top.qcow2", "qcow2", "qcow2")
    # What is recorded may say that it is a file.
    imgtool.rebase(path, f"file:{base.name}", "qcow2", unsafe=True)
    imgtool.compact(path, tmp_path / "sub" / "other.qcow2")
    policy = imgtool.OpenPolicy(allowed_paths=(str(tmp_path),))
    assert imgtool.compare(path, tmp_path / "sub" / "other.qcow2", policy=policy).identical


def test_a_new_image_may_not_lack_anything(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, MiB)
    imgtool.create_snapshot(path, "one")
    before = path.read_bytes()
    with pytest.raises(imgtool.BadOption, match="snapshots"):
        imgtool.compact(path, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["disk.qcow2"]


def test_bitmaps_stay(tmp_path: Path) -> None:
    path, new = tmp_path / "disk.qcow2", tmp_path / "new.qcow2"
    imgtool.create(path, 4 * MiB)
    imgtool.bitmap(path, "changes", "add")
    _fill(path)
    before = list(imgtool.dirty_ranges(path, "changes"))
    assert before
    imgtool.compact(path, new)
    imgtool.compact(path)
    assert list(imgtool.dirty_ranges(new, "changes")) == before
    assert list(imgtool.dirty_ranges(path, "changes")) == before
    _sound(path)
    _sound(new)


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, MiB)
    before = path.read_bytes()

    def stop(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        imgtool.compact(path, path, progress=stop)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["disk.qcow2"]


@pytest.mark.parametrize("name", ["base.qcow2", "link.qcow2"])
def test_what_it_lies_on_is_not_replaced(tmp_path: Path, name: str) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, MiB)
    _fill(base)
    (tmp_path / "link.qcow2").symlink_to(base)
    imgtool.create(path, backing_file=base.name, backing_format="qcow2")
    before, files = base.read_bytes(), sorted(os.listdir(tmp_path))
    with pytest.raises(imgtool.BadOption, match="being read"):
        imgtool.compact(path, tmp_path / name)
    assert base.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == files


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such locks")
def test_what_is_written_to_is_not_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "disk.qcow2", tmp_path / "other.qcow2"
    imgtool.create(path, MiB)
    imgtool.create(other, MiB)
    with imgtool.open(other, writable=True) as disk:
        with pytest.raises(imgtool.InUse):
            imgtool.compact(path, other)
        disk.write_at(0, b"still here")

    def write(done: int, total: int) -> None:
        for target in (path, other):
            with pytest.raises(imgtool.InUse):
                imgtool.open(target, writable=True)
        refused.append(done)

    refused: list[int] = []
    imgtool.compact(path, other, progress=write)
    assert refused
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow2", "other.qcow2"]


@pytest.mark.parametrize("existing", [False, True])
def test_what_has_come_meanwhile_is_not_replaced(tmp_path: Path, existing: bool) -> None:
    """Another compact may have put a new file there, and a guest have written to that."""
    path, target, other = (tmp_path / name for name in ("disk.qcow2", "new.qcow2", "other"))
    imgtool.create(path, MiB)
    if existing:
        target.write_bytes(b"old")

    def come(done: int, total: int) -> None:
        other.write_bytes(b"newer")
        os.replace(other, target)

    with pytest.raises(imgtool.ImageError, match="another file by now"):
        imgtool.compact(path, target, progress=come)
    assert target.read_bytes() == b"newer"
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow2", "new.qcow2"]


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 249 + ".qcow2")
    imgtool.create(path, MiB)
    imgtool.compact(path, path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_what_is_private_is_so_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, MiB)
    path.chmod(0o600)

    def look(done: int, total: int) -> None:
        modes.update(file.stat().st_mode & 0o777 for file in tmp_path.iterdir())

    modes: set[int] = set()
    imgtool.compact(path, path, progress=look)
    assert modes == {0o600}


@pytest.mark.parametrize("seed", range(effort(4)))
def test_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    imgtool.create(path, 96 * MiB, cluster_size=chance.choice(("4k", "64k")))
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"\3" * 96 * MiB)
    with imgtool.open(path, writable=True) as disk:
        for offset in range(0, 96 * MiB, 128 * KiB):
            disk.write_at(offset, bytes(64 * KiB))
    raw.write_bytes(_contents(path))
    script = (
        "import imgtool, sys\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "imgtool.compact(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(chance.random() * 1.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    found = referee.check(path)
    assert not found.get("corruptions"), found
    assert not found["check-errors"], found
    assert referee.compare(path, raw, "qcow2", "raw")
    imgtool.compact(path)
    assert referee.compare(path, raw, "qcow2", "raw")
    assert not referee.check(path).get("corruptions")
