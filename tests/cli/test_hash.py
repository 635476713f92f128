"""``hash`` at the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import imgtool as library
from tests.cli.conftest import Imgtool
from tests.kit.treehash import tree_hash

_DISK = b"a disk" * 512 * 100


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(_DISK)
    library.convert(tmp_path / "a.raw", tmp_path / "a.qcow2")


def test_lines_are_those_of_sha256sum(imgtool: Imgtool) -> None:
    done = imgtool("hash", "a.raw", "a.qcow2")
    digest = tree_hash(_DISK)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == f"{digest}  a.raw\n{digest}  a.qcow2\n"
    done = imgtool("hash", "--raw", "a.qcow2")
    assert done.stdout == f"{hashlib.sha256(_DISK).hexdigest()}  a.qcow2\n"


def test_json(imgtool: Imgtool) -> None:
    one = {
        "filename": "a.qcow2",
        "algorithm": "blake2b",
        "raw": True,
        "digest": hashlib.blake2b(_DISK).hexdigest(),
    }
    options = ("hash", "--raw", "-a", "blake2b", "--output", "json")
    assert json.loads(imgtool(*options, "a.qcow2").stdout) == one
    several = json.loads(imgtool(*options, "a.qcow2", "a.raw").stdout)
    assert several == [one, {**one, "filename": "a.raw"}]


def test_what_fails_does_not_stop_the_rest(imgtool: Imgtool) -> None:
    for output in ("human", "json"):
        done = imgtool("hash", "--output", output, "nope", "a.raw")
        assert done.status == 1
        assert done.stderr == "imgtool: Could not open 'nope': No such file or directory\n"
        assert tree_hash(_DISK) in done.stdout
    assert imgtool("hash", "--output", "json", "nope").stdout == ""


def test_image_opts_and_formats(imgtool: Imgtool) -> None:
    plain = hashlib.sha256(_DISK).hexdigest()
    done = imgtool("hash", "--raw", "--image-opts", "driver=qcow2,file.filename=a.qcow2")
    assert done.stdout.startswith(plain)
    done = imgtool("hash", "--raw", "-f", "raw", "a.qcow2")
    assert not done.stdout.startswith(plain)
    done = imgtool("hash", "-f", "qcow2", "a.raw")
    assert done.status == 1


def test_progress_stays_out_of_the_lines(imgtool: Imgtool) -> None:
    done = imgtool("hash", "-p", "a.raw")
    assert done.stdout == f"{tree_hash(_DISK)}  a.raw\n"
    assert done.stderr.endswith("(100.00/100%)\r\n")
    done = imgtool("hash", "--progress=json", "a.raw")
    assert json.loads(done.stderr.splitlines()[-1])["done"] == len(_DISK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expecting at least one image file name"),
        (("-a", "crc32", "a.raw"), "Unknown algorithm 'crc32': choose one of sha256, "),
        (("-a", "md5", "a.raw"), "The algorithm md5 is only there for --raw digests"),
        (("-m", "0", "a.raw"), "0 is not in the range"),
        (("-l", "nope", "a.qcow2"), "nope"),
        (("--image-opts", "-f", "raw", "a.raw"), "mutually exclusive"),
    ],
)
def test_refusals(imgtool: Imgtool, arguments: tuple[str, ...], message: str) -> None:
    done = imgtool("hash", *arguments)
    assert (done.status, done.stdout) == (1, "")
    assert message in done.stderr
