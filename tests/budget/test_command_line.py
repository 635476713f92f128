"""The options of commands that set a budget."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.cli.main import run
from tests.budget.calls import MiB, plain


@pytest.mark.parametrize(
    "command",
    ["info", "check", "map", "measure -O qcow2", "hash", "snapshot -l", "compare", "convert", "dd"],
)
def test_options(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(plain(tmp_path / "disk.qcow2")), str(tmp_path / "out")
    operands = {
        "compare": [path, path],
        "convert": ["-O", "raw", path, out],
        "dd": [f"if={path}", f"of={out}"],
    }.get(command, [path])
    for option, allowed in (("--max-virtual-size", "1M"), ("--max-memory", "1M")):
        assert run([*command.split(), option, allowed, *operands]) == 0
        capsys.readouterr()
        assert run([*command.split(), option, "1k", *operands]) > 0
        printed = capsys.readouterr()
        assert option in printed.err
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "map", "measure -O qcow2", "hash", "compact"])
def test_the_option_for_work(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(plain(tmp_path / "disk.qcow2"))
    assert run([*command.split(), "--max-work", "10000", path]) == 0
    capsys.readouterr()
    assert run([*command.split(), "--max-work", "1", path]) > 0
    printed = capsys.readouterr()
    assert "--max-work" in printed.err
    assert printed.err.count("\n") == 1
    assert run([*command.split(), "--max-work", "many", path]) > 0


@pytest.mark.parametrize(
    "command",
    [
        "resize DISK 2M",
        "amend -o lazy_refcounts=on DISK",
        "commit DISK",
        "rebase -b  DISK",
        "compact DISK",
        "bitmap --add DISK b",
        "snapshot -c s DISK",
        "io -c length DISK",
        "check -r all DISK",
        "check -r all --dry-run DISK",
        "create -f qcow2 -b disk.qcow2 -F qcow2 TOP",
    ],
)
def test_options_of_commands_that_write(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MiB))
    path = plain(tmp_path / "disk.qcow2", backing=b"base.raw", backing_format=b"raw")
    names = {"DISK": str(path), "TOP": str(tmp_path / "top.qcow2")}
    before = path.read_bytes()
    words = [names.get(word, word) for word in command.split(" ")]
    for option in ("--max-virtual-size", "--max-memory"):
        capsys.readouterr()
        assert run([*words[:1], option, "1k", *words[1:]]) > 0
        printed = capsys.readouterr()
        assert option in printed.err
        assert printed.err.count("\n") == 1
        assert path.read_bytes() == before
        assert not os.path.exists(names["TOP"])
    assert run([*words[:1], "--max-virtual-size=2M", "--max-memory=2M", *words[1:]]) == 0
