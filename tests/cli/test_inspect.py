"""``inspect`` at the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool
from tests.kit import foreign
from tests.kit.qcow2 import ImageBuilder
from tests.ops.inspect.judging import SOUND


@pytest.fixture
def images(tmp_path: Path) -> None:
    """A safe image, and one that is not."""
    builder = ImageBuilder(1 << 20)
    builder.data(0, b"x" * 65536)
    (tmp_path / "safe.q").write_bytes(builder.build())
    builder = ImageBuilder(1 << 20, backing=b"/etc/\x1bpasswd", backing_format=b"raw")
    (tmp_path / "unsafe.q").write_bytes(builder.build())


@pytest.mark.usefixtures("images")
def test_text(imgtool: Imgtool, tmp_path: Path) -> None:
    size = (tmp_path / "safe.q").stat().st_size
    done = imgtool("inspect", "safe.q")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "image: safe.q",
        "format: qcow2 (version 3)",
        "virtual size: 1 MiB (1048576 bytes)",
        f"file size: {size // 1024} KiB ({size} bytes)",
        "verdict: safe",
    ]
    done = imgtool("inspect", "unsafe.q")
    assert (done.status, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert "names backing-file: /etc/\\x1bpasswd (format: raw)" in lines
    assert any(line.startswith("unsafe: ") and line.endswith("[name-absolute]") for line in lines)
    assert lines[-1] == "verdict: unsafe"
    assert "\x1b" not in done.stdout


@pytest.mark.usefixtures("images")
def test_json(imgtool: Imgtool) -> None:
    shown = json.loads(imgtool("inspect", "--output=json", "unsafe.q").stdout)
    assert (shown["verdict"], shown["format"], shown["variant"]) == ("unsafe", "qcow2", "version 3")
    assert shown["names"] == [{"role": "backing-file", "name": "/etc/\x1bpasswd", "format": "raw"}]
    assert {problem["code"] for problem in shown["problems"]} == {
        "backing-file", "name-absolute", "name-control",
    }  # fmt: skip
    shown = json.loads(imgtool("inspect", "--output=json", "safe.q", "unsafe.q").stdout)
    assert [one["verdict"] for one in shown] == ["safe", "unsafe"]


@pytest.mark.usefixtures("images")
def test_status(imgtool: Imgtool) -> None:
    assert imgtool("inspect", "-q", "safe.q").stdout == ""
    assert imgtool("inspect", "-q", "safe.q", "unsafe.q").status == 2
    done = imgtool("inspect", "-q", "unsafe.q", "missing")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == "imgtool: Could not open 'missing': No such file or directory\n"
    assert imgtool("inspect").status == 1
    assert imgtool("inspect", "-f", "nonsense", "safe.q").status == 1
    assert imgtool("inspect", ".").status == 1


@pytest.mark.usefixtures("images")
def test_what_is_expected(imgtool: Imgtool) -> None:
    assert imgtool("inspect", "-f", "qcow2", "--max-virtual-size", "1M", "safe.q").status == 0
    assert imgtool("inspect", "-f", "raw", "safe.q").status == 2
    assert imgtool("inspect", "--max-virtual-size", "1023k", "safe.q").status == 2
    accepted = [f"--accept={code}" for code in ("backing-file", "name-absolute", "name-control")]
    assert imgtool("inspect", *accepted[:2], "unsafe.q").status == 2
    done = imgtool("inspect", *accepted, "unsafe.q")
    assert done.status == 0
    assert "warning: It names the backing file" in done.stdout


def test_what_people_are_told(imgtool: Imgtool, tmp_path: Path) -> None:
    disk = foreign.vhd_fixed(foreign.description("x", 'RW 1 FLAT "../a" 0'))
    (tmp_path / "a.img").write_bytes(disk)
    lines = imgtool("inspect", "a.img").stdout.splitlines()
    assert "also claimed by: vhd (tail)" in lines
    assert "names extent: ../a" in lines
    (tmp_path / "b.img").write_bytes(foreign.dmg())
    lines = imgtool("inspect", "b.img").stdout.splitlines()
    assert any(line.startswith("not checked: The lists of blocks") for line in lines)
    (tmp_path / "c.img").write_bytes(foreign.gpt_disk())
    assert "contents: gpt" in imgtool("inspect", "c.img").stdout.splitlines()


def test_features_and_encryption(imgtool: Imgtool, tmp_path: Path) -> None:
    for name in ("qcow2-encrypted", "qcow2-extended"):
        (tmp_path / name).write_bytes(SOUND[name][1]())
    lines = imgtool("inspect", "qcow2-encrypted").stdout.splitlines()
    assert "encryption: luks aes-512 xts-plain64 sha256" in lines
    lines = imgtool("inspect", "qcow2-extended").stdout.splitlines()
    assert "features: extended L2 entries, internal snapshots" in lines
    (tmp_path / "cut").write_bytes(b"QFI\xfb\0\0\0\3")
    done = imgtool("inspect", "cut")
    assert (done.status, "virtual size" in done.stdout) == (2, False)


@pytest.mark.usefixtures("images")
def test_standard_input_that_cannot_seek(tmp_path: Path) -> None:
    for name, status in (("safe.q", 0), ("unsafe.q", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", "inspect", "--output=json", "-"],
            input=(tmp_path / name).read_bytes(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == status
        shown = json.loads(done.stdout)
        assert (shown["filename"], shown["format"]) == ("<stdin>", "qcow2")


@pytest.mark.usefixtures("images")
@pytest.mark.skipif(os.name != "posix", reason="pipes that do not wait are POSIX's")
def test_standard_input_that_does_not_wait(tmp_path: Path) -> None:
    """Whoever made the pipe may have set it so; a pause in the upload is not its end."""
    image = (tmp_path / "unsafe.q").read_bytes()
    for first in (0, 100, len(image) // 2):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with subprocess.Popen(
            [sys.executable, "-m", "imgtool", "inspect", "--output=json", "-"],
            stdin=reader, stdout=subprocess.PIPE,
        ) as running:  # fmt: skip
            os.close(reader)
            with open(writer, "wb", buffering=0) as upload:
                upload.write(image[:first])
                time.sleep(0.5)
                upload.write(image[first:])
            assert running.stdout is not None
            shown = json.loads(running.stdout.read())
        assert running.returncode == 2
        assert (shown["filename"], shown["file-size"]) == ("<stdin>", len(image))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this host has no /dev/zero")
@pytest.mark.parametrize("options", [["--max-virtual-size", "8M"], ["-f", "qcow2"]])
def test_standard_input_that_never_ends(options: list[str]) -> None:
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as endless:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", "inspect", *options, "-"],
            stdin=endless.stdout, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        endless.kill()
    assert done.returncode == 2
    assert "not checked: What follows (at offset " in done.stdout
