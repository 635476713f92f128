"""``info`` at the command line, where qemu-img has nothing to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool


@pytest.fixture
def images(imgtool: Imgtool) -> None:
    assert imgtool("create", "-q", "-f", "qcow2", "base.q", "1M").status == 0
    assert (
        imgtool("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q").status == 0
    )


@pytest.mark.usefixtures("images")
def test_several_files(imgtool: Imgtool) -> None:
    alone = [imgtool("info", name).stdout for name in ("base.q", "top.q")]
    done = imgtool("info", "base.q", "top.q")
    assert (done.status, done.stdout) == (0, "\n".join(alone))
    listed = json.loads(imgtool("info", "--output=json", "base.q", "top.q").stdout)
    assert [image["filename"] for image in listed] == ["base.q", "top.q"]
    listed = json.loads(imgtool("info", "--output=json", "-b", "base.q", "top.q").stdout)
    assert [[image["filename"] for image in chain] for chain in listed] == [
        ["base.q"],
        ["top.q", "base.q"],
    ]


@pytest.mark.usefixtures("images")
def test_one_of_several_files_is_missing(imgtool: Imgtool) -> None:
    done = imgtool("info", "base.q", "nope", "top.q")
    assert done.status == 1
    assert done.stdout.count("image: ") == 2
    assert done.stderr == "imgtool: Could not open 'nope': No such file or directory\n"


@pytest.mark.usefixtures("images")
def test_only_the_image_is_opened(imgtool: Imgtool, tmp_path: Path) -> None:
    before = imgtool("info", "top.q")
    (tmp_path / "base.q").unlink()
    assert imgtool("info", "top.q") == before
    done = imgtool("info", "--backing-chain", "top.q")
    assert (done.status, done.stdout) == (1, "")
    assert "base.q" in done.stderr


@pytest.mark.usefixtures("images")
def test_trust(imgtool: Imgtool, monkeypatch: pytest.MonkeyPatch) -> None:
    done = imgtool("info", "-b", "--untrusted", "top.q")
    assert done.status == 1
    assert "base.q" in done.stderr
    done = imgtool("info", "-b", "--trust", "--untrusted", "top.q")
    assert done.status == 1
    assert "exclude each other" in done.stderr
    monkeypatch.setenv("IMGTOOL_TRUST", "none")
    assert imgtool("info", "-b", "top.q").status == 1
    assert imgtool("info", "-b", "--trust", "top.q").status == 0
    monkeypatch.setenv("IMGTOOL_TRUST", "perhaps")
    done = imgtool("info", "-b", "top.q")
    assert (done.status, done.stderr.count("\n")) == (1, 1)


def test_allowed_paths(imgtool: Imgtool, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    imgtool("create", "-q", "-f", "qcow2", "one/base.q", "1M")
    imgtool("create", "-q", "-f", "qcow2", "-b", "../one/base.q", "-F", "qcow2", "two/top.q")
    done = imgtool("info", "-b", "two/top.q")
    assert done.status == 1
    assert "--allow-path" in done.stderr
    assert imgtool("info", "-b", "--allow-path", "one", "two/top.q").status == 0


def test_text_from_images_is_escaped(imgtool: Imgtool) -> None:
    name = "x\x1b[2J\nimage: forged"
    imgtool("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "a.q", "1M")
    done = imgtool("info", "a.q")
    assert "backing file: x\\x1b[2J\\nimage: forged" in done.stdout
    assert "\x1b" not in done.stdout
    shown = json.loads(imgtool("info", "--output=json", "a.q").stdout)
    assert shown["backing-filename"] == name
