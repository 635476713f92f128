"""Commands whose output goes nowhere, that are told to end, and names that look like protocols."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import imgtool
from imgtool import OpenPolicy, Trust
from tests.kit.signals import heed

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "imgtool"]


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = f'imgtool() {{ "{sys.executable}" -m imgtool "$@"; }}\n{script}'
    return subprocess.run(
        ["sh", "-c", script],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_closed_stdout(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    for arguments in ("info a.qcow2", "check a.qcow2", "map --output json a.qcow2", "--help"):
        done = shell(f"imgtool {arguments} >&-", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert shell("imgtool convert -p -O raw a.qcow2 b.raw >&-", tmp_path).returncode == 0
    assert (tmp_path / "b.raw").stat().st_size == 1 << 20


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this host has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_for_which_there_is_no_room(tmp_path: Path, unbuffered: str) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    buffering = f"PYTHONUNBUFFERED={unbuffered} "
    for arguments in ("info a.qcow2", "check a.qcow2", "map a.qcow2", "hash a.qcow2", "--help"):
        done = shell(f"{buffering}imgtool {arguments} >/dev/full", tmp_path)
        assert done.returncode == 1
        assert done.stderr == "imgtool: standard output: No space left on device\n"
    # Messages that are lost change nothing else.
    done = shell(f"{buffering}imgtool info nope 2>/dev/full", tmp_path)
    assert done.returncode == 1
    done = shell(f"{buffering}imgtool info nope a.qcow2 2>/dev/full", tmp_path)
    assert done.returncode == 1
    assert "virtual size: 1 MiB" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this host has no /dev/full")
def test_what_cannot_be_printed_is_not_different(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4096))
    done = shell("imgtool compare -f raw -F raw a.raw a.raw >/dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "imgtool: standard output: No space left on device\n"


def test_whoever_reads_the_output_may_have_enough(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "4M")
    for arguments in ('io -c "read -v 0 4M" a.qcow2', "info --output json a.qcow2"):
        done = shell(f"imgtool {arguments} | head -c 1", tmp_path)
        assert (len(done.stdout), done.stderr) == (1, "")


def test_a_pipe_that_takes_no_more_for_now(tmp_path: Path) -> None:
    """Output is never cut short without a word, whatever the pipe is set to."""
    imgtool.create(tmp_path / "a.qcow2", "4M")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb"), open(writer, "wb") as output:
        done = subprocess.run(
            [*COMMAND, "io", "-c", "read -v 0 4M", "a.qcow2"],
            cwd=tmp_path, env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
            stdout=output, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    for line in done.stderr.splitlines():
        assert line.startswith("imgtool: standard output: ")


def test_commands_that_come_after_a_pause(tmp_path: Path) -> None:
    """Input that is set not to wait has not ended because nothing has come yet."""
    imgtool.create(tmp_path / "a.qcow2", "1M")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with subprocess.Popen(
        [*COMMAND, "io", "a.qcow2"],
        cwd=tmp_path, env=ENVIRONMENT, stdin=reader, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        os.close(reader)
        with open(writer, "wb", buffering=0) as typed:
            time.sleep(0.5)
            typed.write(b"length\nread 0 5")
            time.sleep(0.2)
            typed.write(b"12\n")
        assert running.stdout is not None
        shown = running.stdout.read()
    assert running.returncode == 0
    assert "1 MiB" in shown
    assert "read 512/512 bytes" in shown


def test_closed_stdin(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    assert shell("imgtool io a.qcow2 <&-", tmp_path).returncode == 0
    done = shell("imgtool inspect - <&-", tmp_path)
    assert (done.returncode, done.stderr) == (1, "imgtool: standard input: it is closed\n")
    done = shell("imgtool inspect - a.qcow2 <&-", tmp_path)
    assert (done.returncode, done.stderr) == (1, "imgtool: standard input: it is closed\n")
    assert "verdict: safe" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this host has no /dev/zero")
def test_devices_without_an_end_are_not_inspected(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/urandom"):
        done = shell(f"imgtool inspect - <{device}", tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "character device" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_target_goes_when_the_command_is_told_to_end(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "a.raw").write_bytes(os.urandom(8 << 20))
    running = subprocess.Popen(
        [*COMMAND, "convert", "-r", "1M", "-f", "raw", "-O", "raw", "a.raw", "b.raw"],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL, preexec_fn=heed,
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "b.raw").exists():
            break
        time.sleep(0.05)
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert not (tmp_path / "b.raw").exists()


def test_names_with_colons_are_recorded_as_paths(tmp_path: Path) -> None:
    script = """
        imgtool create -q -f qcow2 a:b 1M
        imgtool create -q -f qcow2 -b a:b -F qcow2 over.qcow2
        imgtool create -q -f qcow2 -o data_file=d:f data.qcow2 1M
        imgtool convert -O raw over.qcow2 1.raw && imgtool convert -O raw data.qcow2 2.raw
    """
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert imgtool.info(tmp_path / "over.qcow2").backing_filename == "./a:b"
    assert shell("imgtool create -f raw nbd:localhost:10809 1M", tmp_path).returncode == 1
    assert not (tmp_path / "nbd:localhost:10809").exists()


def test_policies_are_not_misunderstood() -> None:
    with pytest.raises(TypeError):
        OpenPolicy("none")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        OpenPolicy(Trust.CONFINED, "/srv/images")  # type: ignore[arg-type]


def test_salvage_of_a_damaged_mapping(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "4M")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"x" * (1 << 20))
        table = next(disk.extents()).host_offset
    assert table is not None
    damaged = bytearray(path.read_bytes())
    first = damaged.index((table | 1 << 63).to_bytes(8, "big"))
    damaged[first + 8 * 8 + 6] |= 2  # the ninth entry no longer points at a cluster
    path.write_bytes(damaged)
    told: list[str] = []
    imgtool.convert(path, tmp_path / "b.raw", salvage=True, warn=told.append)
    found = (tmp_path / "b.raw").read_bytes()
    assert found[: 8 << 16] == b"x" * (8 << 16)
    assert found[8 << 16 : 9 << 16] == bytes(1 << 16)
    assert found[9 << 16 : 1 << 20] == b"x" * (7 << 16)
    assert told


def test_stored_names_are_bytes_whatever_the_locale(tmp_path: Path) -> None:
    script = """
        imgtool create -q -f qcow2 é.q 1M
        imgtool create -q -f qcow2 -b é.q -F qcow2 over.q
        export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0
        imgtool map --output json over.q
        imgtool convert -O qcow2 -B é.q -F qcow2 over.q copy.q
        imgtool compare over.q copy.q
    """
    done = shell(f"set -e\n{script}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits")
@pytest.mark.parametrize(
    "arguments",
    [
        "commit top.q", "rebase -b '' top.q", "convert -O raw top.q x.raw", "compact -o x.q top.q",
        "convert -c -O qcow2 top.q x.q", "check -r all top.q", "bench -c 100 top.q", "hash top.q",
    ],
)  # fmt: skip
def test_little_address_space(arguments: str, tmp_path: Path) -> None:
    """256 MiB of it, most of which are libraries and the heaps of threads."""
    imgtool.create(tmp_path / "base.q", "64M", format="qcow2")
    imgtool.create(
        tmp_path / "top.q", format="qcow2", backing_file="base.q", backing_format="qcow2"
    )
    with imgtool.open(tmp_path / "top.q", writable=True) as disk:
        disk.write_at(0, b"x" * (3 << 20))
    two = ",".join(str(number) for number in sorted(os.sched_getaffinity(0))[:2])
    # Two processors: with many there are as many threads.
    limits = f"taskset -p -c {two} $$ >taskset; ulimit -v 262144"
    done = shell(f"{limits}; imgtool {arguments}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs ulimit")
def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.q", "64M", format="qcow2")
    done = shell("ulimit -n 5; imgtool convert -O raw a.q b.raw", tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("imgtool: ")
