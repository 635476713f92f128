"""``create`` at the command line: what becomes of files when it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.storage.file import FileStorage
from tests.cli.conftest import Imgtool


@pytest.mark.parametrize(
    "options",
    ["cluster_size=3", "bogus=1", "compat=0.10,lazy_refcounts=on", "data_file=old", "size=1M"],
)
def test_a_refused_request_touches_nothing(imgtool: Imgtool, tmp_path: Path, options: str) -> None:
    (tmp_path / "old").write_bytes(b"precious")
    done = imgtool("create", "-f", "qcow2", "-o", options, "old", "1M")
    assert done.status == 1
    assert done.stderr.startswith("imgtool: old: ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "old").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_no_image(
    imgtool: Imgtool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "a.q")

    if existing:
        (tmp_path / "a.q").write_bytes(b"x" * 1024)
    monkeypatch.setattr(FileStorage, "flush", full)
    done = imgtool("create", "-f", "qcow2", "-o", "data_file=d.raw", "a.q", "1M")
    assert (done.status, done.stderr) == (1, "imgtool: a.q: No space left on device\n")
    assert os.listdir(tmp_path) == (["a.q"] if existing else [])
    if existing:
        assert (tmp_path / "a.q").stat().st_size == 0


def test_the_data_file_lies_beside_the_image(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    imgtool("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "sub/a.q", "1M")
    assert sorted(os.listdir(tmp_path / "sub")) == ["a.q", "d.raw"]
    assert imgtool("convert", "sub/a.q", "out.raw").status == 0


def test_list_is_help_too(imgtool: Imgtool) -> None:
    assert imgtool("create", "-o", "list") == imgtool("create", "-o", "help")
    assert imgtool("create", "-f", "qcow2", "-o", "cluster_size=4k,help").status == 0


def test_control_characters_are_escaped(imgtool: Imgtool) -> None:
    done = imgtool("create", "a\nb.raw", "1M")
    assert done.stdout == "Formatting 'a\\nb.raw', fmt=raw size=1048576\n"


@pytest.mark.parametrize("options", [["base.q"], ["-o", "data_file=base.q", "new.q"]])
def test_nothing_of_its_chain_is_overwritten(
    imgtool: Imgtool, tmp_path: Path, options: list[str]
) -> None:
    """The base of an overlay that the new image is to lie on, for one."""
    assert imgtool("create", "-q", "-f", "qcow2", "base.q", "1M").status == 0
    over = ("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "over.q")
    assert imgtool(*over).status == 0
    before = (tmp_path / "base.q").read_bytes()
    done = imgtool("create", "-q", "-f", "qcow2", "-b", "over.q", "-F", "qcow2", *options)
    assert done.status == 1
    assert "being read" in done.stderr
    assert (tmp_path / "base.q").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.q", "over.q"]


def test_a_backing_file_may_be_in_use(imgtool: Imgtool, tmp_path: Path) -> None:
    assert imgtool("create", "-q", "-f", "qcow2", "base.q", "1M").status == 0
    with FileStorage.open(tmp_path / "base.q", writable=True):
        done = imgtool("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "top.q")
        assert (done.status, done.stderr) == (0, "")
        done = imgtool("create", "-q", "-f", "qcow2", "base.q", "1M")
        assert done.status == 1
        assert "another process" in done.stderr
