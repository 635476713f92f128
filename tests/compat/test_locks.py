"""Images that QEMU has open, in each way in which it opens them, and images that we have open."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import imgtool
from imgtool import ImageError, InUse
from tests.kit import referee
from tests.kit.disks import ANY, open_disk
from tests.kit.tools import require_tool

if not sys.platform.startswith("linux"):
    pytest.skip("only Linux has open file description locks", allow_module_level=True)

#: The images: what is opened, its format, and the file in it that others may want.
IMAGES = {
    "raw": ("disk.raw", "raw", "disk.raw"),
    "qcow2": ("disk.qcow2", "qcow2", "disk.qcow2"),
    "backing": ("overlay.qcow2", "qcow2", "disk.qcow2"),
    "data-file": ("outside.qcow2", "qcow2", "outside.data"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # QEMU looks for data files where it was started.
    monkeypatch.chdir(tmp_path)
    imgtool.create(tmp_path / "disk.raw", "1M")
    imgtool.create(tmp_path / "disk.qcow2", "1M", format="qcow2")
    imgtool.create(tmp_path / "overlay.qcow2", backing_file="disk.qcow2", backing_format="qcow2")
    imgtool.create(tmp_path / "outside.qcow2", "1M", data_file="outside.data", data_file_raw=True)
    return tmp_path


@contextlib.contextmanager
def _running(command: Sequence[str], ready: bytes = b"") -> Iterator[None]:
    """A program that has said ``ready``, until it is stopped."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            said = process.stdout.readline() if ready else b""
            if said.startswith(b'{"QMP"'):
                # It greets before it opens anything, and answers when it has.
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
                    process.stdin.flush()
                answer = process.stdout.readline()
                assert b"return" in answer, answer + process.stdout.read()
            assert said.startswith(ready), said + process.stdout.read()
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)


@contextlib.contextmanager
def machine(path: Path, format: str, writable: bool) -> Iterator[None]:
    """A virtual machine that has stopped before its first instruction."""
    read_only = "off" if writable else "on"
    command = [
        require_tool("qemu-system-x86_64"), "-nodefaults", "-display", "none", "-S",
        "-accel", "tcg", "-qmp", "stdio", "-device", "virtio-blk-pci,drive=disk",
        "-drive", f"if=none,id=disk,file={path},format={format},read-only={read_only}",
    ]  # fmt: skip
    with _running(command, b'{"QMP"'):
        yield


@contextlib.contextmanager
def daemon(path: Path, format: str, writable: bool) -> Iterator[None]:
    """qemu-storage-daemon, exporting the image."""
    place = path.parent / "daemon"
    node: dict[str, object] = {
        "driver": format, "node-name": "disk", "read-only": not writable,
        "file": {"driver": "file", "filename": str(path)},
    }  # fmt: skip
    word = "on" if writable else "off"
    command = [
        require_tool("qemu-storage-daemon"), "--blockdev", json.dumps(node),
        "--nbd-server", f"addr.type=unix,addr.path={place}",
        "--export", f"type=nbd,id=export,node-name=disk,writable={word}",
        "--chardev", "stdio,id=chat", "--monitor", "chardev=chat",
    ]  # fmt: skip
    with _running(command, b'{"QMP"'):
        yield


@contextlib.contextmanager
def nbd(path: Path, format: str, writable: bool) -> Iterator[None]:
    """qemu-nbd, serving the image."""
    place = path.parent / "nbd"
    command = [require_tool("qemu-nbd"), "-t", "-k", str(place), "-f", format, str(path)]
    with _running(command if writable else [*command, "-r"]):
        end = time.monotonic() + 60
        while not place.exists() and time.monotonic() < end:
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as client:
            # It listens before it opens anything, and greets when it has.
            client.settimeout(60)
            client.connect(str(place))
            assert client.recv(8) == b"NBDMAGIC"
            yield
    place.unlink(missing_ok=True)


@contextlib.contextmanager
def shell(path: Path, format: str, writable: bool) -> Iterator[None]:
    """qemu-io, waiting for commands."""
    command = [require_tool("qemu-io"), "-f", format, str(path)]
    with subprocess.Popen(
        command if writable else [*command, "-r"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(8) == b"qemu-io>"
            yield
        finally:
            process.communicate(timeout=60)


@contextlib.contextmanager
def second(path: Path, format: str, writable: bool) -> Iterator[None]:
    """Another imgtool."""
    script = (
        "import imgtool, sys; path, format, writable = sys.argv[1:]\n"
        "with imgtool.open(path, format=format, writable=writable == 'yes'):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()"
    )
    words = [str(path), format, "yes" if writable else "no"]
    with _running([sys.executable, "-c", script, *words], b"open"):
        yield


HOLDERS = {"machine": machine, "daemon": daemon, "nbd": nbd, "shell": shell, "imgtool": second}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_writer_keeps_us_out(holder: str, kind: str, folder: Path) -> None:
    name, driver, file = IMAGES[kind]
    inner = "raw" if file.endswith((".raw", ".data")) else "qcow2"
    with HOLDERS[holder](folder / name, driver, True):
        with pytest.raises(InUse, match="lock: is another process using"):
            open_disk(folder / name, driver, policy=ANY, writable=True)
        with pytest.raises(InUse, match="lock: is another process using") as caught:
            open_disk(folder / name, driver, policy=ANY)
        assert caught.value.filename is not None
        with pytest.raises(InUse):
            open_disk(folder / file, inner, policy=ANY, writable=True)
        with open_disk(folder / name, driver, policy=ANY, share=True) as disk:
            assert disk.read_at(0, 512) == bytes(512)
        if kind == "backing":
            # What a machine only reads, others may read.
            open_disk(folder / file, inner, policy=ANY).close()
        with pytest.raises(ImageError):
            imgtool.create(folder / file, "2M", format=inner)
    open_disk(folder / name, driver, policy=ANY, writable=True).close()


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_reader_lets_us_read(holder: str, kind: str, folder: Path) -> None:
    name, driver, file = IMAGES[kind]
    inner = "raw" if file.endswith((".raw", ".data")) else "qcow2"
    with HOLDERS[holder](folder / name, driver, False):
        open_disk(folder / name, driver, policy=ANY).close()
        if holder == "shell" and inner == "raw":
            return  # qemu-io lets others write to what it reads as raw
        with pytest.raises(InUse):
            open_disk(folder / file, inner, policy=ANY, writable=True)


def _refused(tool: str, *arguments: str) -> bool:
    """Whether a tool of QEMU's cannot have an image, and says that it is for a lock."""
    done = referee.run(tool, *arguments)
    if done.returncode:
        assert "lock" in done.stderr, done.stderr
    return bool(done.returncode)


@pytest.mark.parametrize("kind", IMAGES)
def test_qemu_sees_what_we_have(kind: str, folder: Path) -> None:
    name, driver, file = IMAGES[kind]
    path, part = str(folder / name), str(folder / file)
    inner = "raw" if file.endswith((".raw", ".data")) else "qcow2"

    def look(*words: str) -> tuple[str, ...]:
        return ("qemu-io", *words, "-c", "read 0 512")

    with open_disk(path, driver, policy=ANY, writable=True):
        assert _refused(*look("-f", driver), path)
        # What qemu-io only reads, as raw, may be written to meanwhile.
        assert _refused(*look("-r", "-f", driver), path) == (driver != "raw")
        assert _refused("qemu-img", "info", path) == (driver != "raw")
        assert not _refused("qemu-img", "info", "-U", path)
        assert _refused(*look("-f", inner), part)
        assert _refused(*look("-r", "-f", inner), part) == (kind == "qcow2")
        if kind != "backing":
            assert _refused("qemu-img", "resize", "-f", inner, part, "+1M")
        with pytest.raises(AssertionError, match="lock"), machine(Path(path), driver, True):
            pass
    with open_disk(path, driver, policy=ANY):
        assert _refused(*look("-f", driver), path)
        assert _refused(*look("-f", inner), part)
        assert not _refused(*look("-r", "-f", driver), path)
        with machine(Path(path), driver, False):
            pass
    with open_disk(path, driver, policy=ANY, share=True):
        assert not _refused(*look("-f", driver), path)


def test_commands_look_at_what_a_machine_has(folder: Path) -> None:
    path = folder / "disk.qcow2"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imgtool", *words, str(path)],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    with machine(path, "qcow2", True):
        before = path.read_bytes()
        for words in (("info",), ("check",), ("map",), ("hash",), ("snapshot", "-c", "s")):
            done = run(*words)
            assert done.returncode == 1, words
            assert len(done.stderr.splitlines()) == 1
            assert str(path) in done.stderr
            assert "lock" in done.stderr
            # Nobody writes to what a machine has, so there is no such advice.
            assert ("-U" in done.stderr) == (words[0] != "snapshot")
        for words in (("info", "-U"), ("check", "-U"), ("map", "-U"), ("hash", "-U")):
            assert run(*words).returncode == 0, words
        assert path.read_bytes() == before
