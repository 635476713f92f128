"""``convert`` at the command line: what imgtool has and qemu-img has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool


@pytest.fixture
def raw(tmp_path: Path) -> bytes:
    data = bytes(range(256)) * 4096
    (tmp_path / "a.raw").write_bytes(data)
    return data


def test_progress_for_programs(imgtool: Imgtool, raw: bytes, tmp_path: Path) -> None:
    done = imgtool("convert", "--progress=json", "-f", "raw", "a.raw", "b.raw")
    assert (done.status, done.stdout) == (0, "")
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["done"], last["total"]) == (len(raw), len(raw))
    assert (tmp_path / "b.raw").read_bytes() == raw


@pytest.mark.usefixtures("raw")
def test_a_file_name_after_p_is_no_format(imgtool: Imgtool) -> None:
    assert imgtool("convert", "-p", "a.raw", "json").status == 0
    assert imgtool("convert", "--progress", "a.raw", "json").status == 0
    done = imgtool("convert", "--progress=xml", "a.raw", "b")
    assert done.status == 1


@pytest.mark.usefixtures("raw")
def test_compression_level(imgtool: Imgtool) -> None:
    arguments = ("convert", "-f", "raw", "-O", "qcow2", "--compression-level", "1")
    assert imgtool(*arguments, "-c", "a.raw", "b.q").status == 0
    done = imgtool(*arguments, "a.raw", "b.q")
    assert (done.status, done.stderr) == (
        1,
        "imgtool: --compression-level requires use of -c flag\n",
    )


@pytest.mark.usefixtures("raw")
def test_the_driver_of_a_described_target_is_not_guessed(imgtool: Imgtool, tmp_path: Path) -> None:
    assert imgtool("create", "-q", "-f", "qcow2", "b.q", "1M").status == 0
    before = (tmp_path / "b.q").read_bytes()
    for target in (
        ("--target-image-opts", "a.raw", "file.filename=b.q"),
        ("a.raw", 'json:{"file": {"driver": "file", "filename": "b.q"}}'),
    ):
        done = imgtool("convert", "-n", "-f", "raw", *target)
        assert done.status == 1
        assert "not guessed" in done.stderr
    assert (tmp_path / "b.q").read_bytes() == before


def test_option_help(imgtool: Imgtool) -> None:
    assert imgtool("convert", "-O", "qcow2", "-o", "help") == imgtool(
        "create", "-f", "qcow2", "-o", "help"
    )


def test_trust_is_passed_on(imgtool: Imgtool) -> None:
    imgtool("create", "-q", "-f", "qcow2", "base.q", "1M")
    imgtool("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q")
    assert imgtool("convert", "top.q", "out").status == 0
    done = imgtool("convert", "--untrusted", "top.q", "out")
    assert done.status == 1
    assert done.stderr.startswith("imgtool: Could not open 'top.q': It names the backing file")


@pytest.mark.usefixtures("raw")
def test_the_target_has_the_size_of_its_source(imgtool: Imgtool) -> None:
    for size in ("5M", "512k"):
        arguments = ("convert", "-f", "raw", "-O", "qcow2", "-o", f"size={size}")
        assert imgtool(*arguments, "a.raw", "b.q").status == 0
        assert "virtual size: 1 MiB" in imgtool("info", "b.q").stdout
