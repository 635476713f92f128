"""Images in the hands of a running QEMU: who may open them, and bitmaps that follow its writes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import imgtool
from imgtool.cli.main import run
from imgtool.errors import InUse
from tests.kit import referee
from tests.kit.tools import require_tool

_MiB = 1 << 20
#: What takes no -U, or changes the image.
_REFUSED = [
    ("amend", "-o", "lazy_refcounts=on"),
    ("bitmap", "--add", "{}", "new"),
    ("bitmap", "--remove", "{}", "b"),
    ("check",),
    ("check", "-r", "all"),
    ("commit",),
    ("compact",),
    ("compare", "{}"),
    ("convert", "-O", "raw", "{}", "new.raw"),
    ("create", "-q", "-f", "qcow2", "{}", "1M"),
    ("dd", "if={}", "of=new.raw"),
    ("hash",),
    ("info",),
    ("io", "-c", "write 0 1k"),
    ("io", "-r", "-c", "read 0 1k"),
    ("map",),
    ("measure", "-O", "qcow2"),
    ("rebase", "-u", "-b", ""),
    ("resize", "{}", "+1M"),
    ("snapshot", "-c", "new"),
    ("snapshot", "-l"),
]


@contextmanager
def daemon(image: Path, bitmap: str | None = None) -> Iterator[str]:
    """Keep ``image`` open for writing in qemu-storage-daemon; give the address of its export."""
    socket = image.with_suffix(".sock")
    socket.unlink(missing_ok=True)
    export = "type=nbd,id=e,node-name=disk,writable=on"
    if bitmap is not None:
        export += f",bitmaps.0={bitmap}"
    process = subprocess.Popen(
        [
            require_tool("qemu-storage-daemon"),
            *("--blockdev", f"file,node-name=file,filename={image}"),
            *("--blockdev", "qcow2,node-name=disk,file=file,discard=unmap"),
            *("--nbd-server", f"addr.type=unix,addr.path={socket}"),
            *("--export", export),
        ]
    )
    try:
        for _ in range(1000):
            if socket.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        assert socket.exists()
        yield f"nbd+unix:///disk?socket={socket}"
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, 8 * _MiB, format="qcow2")
    imgtool.bitmap(path, "b", "add", granularity=4096)
    return path


def test_bitmaps_that_the_daemon_fills(image: Path) -> None:
    """What a running QEMU has written is what an incremental backup copies."""
    with daemon(image) as address:
        lines = ("write -P 1 0 6k", "write -P 2 1M 64k", "write -z 3M 4k", "discard 5M 64k")
        referee.io(address, lines, format="raw")
    expected = [(0, 8192), (_MiB, 65536), (3 * _MiB, 4096), (5 * _MiB, 65536)]
    assert list(imgtool.dirty_ranges(image, "b")) == expected
    imgtool.bitmap(image, "b", "clear")
    with daemon(image) as address:
        referee.io(address, ["write -P 3 7M 1"], format="raw")
    assert list(imgtool.dirty_ranges(image, "b")) == [(7 * _MiB, 4096)]
    assert imgtool.check(image).clean


def test_bitmaps_that_we_fill(image: Path) -> None:
    """The daemon exports our bitmap, and goes on with it."""
    with imgtool.open(image, writable=True) as disk:
        disk.write_at(100, b"x")
        disk.write_at(2 * _MiB - 1, bytes(2))
        disk.write_zeroes(4 * _MiB, 8192)
    ours = list(imgtool.dirty_ranges(image, "b"))
    assert ours == [(0, 4096), (2 * _MiB - 4096, 8192), (4 * _MiB, 8192)]
    with daemon(image, "b") as address:
        assert exported(address) == ours
        referee.io(address, ["write 6M 4k"], format="raw")
    assert list(imgtool.dirty_ranges(image, "b")) == [*ours, (6 * _MiB, 4096)]


def exported(address: str) -> list[tuple[int, int]]:
    """The dirty ranges of the bitmap b, as NBD's clients are told."""
    socket = address.partition("socket=")[2]
    options = {
        "driver": "nbd",
        "export": "disk",
        "server.type": "unix",
        "server.path": socket,
        "x-dirty-bitmap": "qemu:dirty-bitmap:b",
    }
    specification = ",".join(f"{name}={value}" for name, value in options.items())
    printed = referee.must("qemu-img", "map", "--output=json", "--image-opts", specification)
    # Where the bitmap is dirty, the client is told that there is no data.
    return [(part["start"], part["length"]) for part in json.loads(printed) if not part["data"]]


def test_an_image_that_qemu_holds_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    with daemon(image):
        before = image.read_bytes()
        for arguments in _REFUSED:
            chosen = [part.replace("{}", image.name) for part in arguments]
            if not any("{}" in part for part in arguments) or arguments[0] == "compare":
                chosen.append(image.name)
            assert run(chosen) != 0, chosen
            printed = capsys.readouterr().err
            assert "lock" in printed
            assert printed.count("\n") == 1, printed
            if arguments[0] in ("amend", "info", "resize"):
                # Nothing can be written all the same.
                assert ("--force-share" in printed) is (arguments[0] == "info")
        for writable in (False, True):
            with pytest.raises(InUse):
                imgtool.open(image, writable=writable)
        with imgtool.open(image, share=True) as disk:
            assert disk.size == 8 * _MiB
        assert image.read_bytes() == before
        assert not Path("new.raw").exists()


def test_qemu_does_not_open_what_we_hold(image: Path) -> None:
    for writable in (False, True):
        with imgtool.open(image, writable=writable):
            done = referee.run("qemu-img", "snapshot", "-c", "new", image)
            assert done.returncode == 1
            assert "lock" in done.stderr
            assert (referee.run("qemu-img", "info", image).returncode == 1) is writable
    referee.must("qemu-img", "snapshot", "-c", "new", image)
