"""The frame: finding commands, and how failures end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from imgtool import __version__
from imgtool.cli import main
from imgtool.cli.errors import printable
from tests.cli.conftest import Imgtool


def test_version(imgtool: Imgtool) -> None:
    for option in ("--version", "-V"):
        done = imgtool(option)
        assert (done.status, done.stdout) == (0, f"imgtool version {__version__}\n")


def test_help_lists_every_command(imgtool: Imgtool) -> None:
    for option in ("--help", "-h"):
        done = imgtool(option)
        assert done.status == 0
        for name, text in main.COMMANDS.items():
            assert f"  {name} " in done.stdout
            assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message", "command"),
    [
        ([], "imgtool: Not enough arguments", "imgtool"),
        (["bogus"], "imgtool: Command not found: bogus", "imgtool"),
        (["convrt"], "imgtool: Command not found: convrt; did you mean 'convert'?", "imgtool"),
        (["--bogus"], "imgtool: No such option", "imgtool"),
        (["info"], "imgtool info: Expecting one image file name", "imgtool info"),
        (["info", "--bogus"], "imgtool info: No such option", "imgtool info"),
        (["create"], "imgtool create: Expecting image file name", "imgtool create"),
        (["create", "a", "1", "b"], "imgtool create: Got unexpected extra", "imgtool create"),
        (["info", "--output=xml", "a"], "imgtool info: Invalid value for '--output'", ""),
    ],
)
def test_usage_errors_take_two_lines_and_exit_1(
    imgtool: Imgtool, arguments: list[str], message: str, command: str
) -> None:
    done = imgtool(*arguments)
    assert (done.status, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(message)
    assert second.startswith(f"Try '{command or 'imgtool info'} --help'")


def test_a_missing_file_is_one_line(imgtool: Imgtool) -> None:
    done = imgtool("info", "nope.img")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == "imgtool: Could not open 'nope.img': No such file or directory\n"


def test_a_wrong_format_is_one_line(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(b"x" * 1024)
    done = imgtool("info", "-f", "qcow2", "a.img")
    assert done.stderr == "imgtool: Could not open 'a.img': Image is not in qcow2 format\n"


def test_errors_deep_in_a_chain_name_both_files(imgtool: Imgtool, tmp_path: Path) -> None:
    assert imgtool("create", "-q", "-f", "qcow2", "base.q", "1M").status == 0
    assert (
        imgtool("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "mid.q").status == 0
    )
    assert imgtool("create", "-q", "-f", "qcow2", "-b", "mid.q", "-F", "qcow2", "top.q").status == 0
    (tmp_path / "base.q").write_bytes(b"broken")
    done = imgtool("convert", "top.q", "out.raw")
    assert done.status == 1
    assert done.stderr == (
        "imgtool: Could not open 'top.q': Could not open backing file 'base.q': "
        "Image is not in qcow2 format\n"
    )
    (tmp_path / "base.q").unlink()
    done = imgtool("convert", "top.q", "out.raw")
    assert done.stderr == (
        "imgtool: Could not open 'top.q': Could not open backing file 'mid.q': "
        "Could not open backing file: Could not open 'base.q': No such file or directory\n"
    )


def test_names_cannot_forge_lines(imgtool: Imgtool) -> None:
    done = imgtool("info", "a\nimgtool: all is well\x1b[2J")
    assert done.stderr.count("\n") == 1
    assert "a\\nimgtool: all is well\\x1b[2J" in done.stderr


def test_printable() -> None:
    assert printable("plain ü 漢 😀") == "plain ü 漢 😀"
    assert printable("a\tb\x85\u2028\u202e") == "a\\tb\\x85\\u2028\\u202e"
    assert printable(os.fsdecode(b"a\xffb")) == "a\\xffb"


def test_interruption(imgtool: Imgtool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imgtool.ops.info.info", interrupted)
    done = imgtool("info", "a")
    assert (done.status, done.stderr) == (130, "imgtool: Interrupted\n")


def test_no_memory_left_is_one_line(imgtool: Imgtool, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*arguments: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(main.group, "main", exhaust)
    done = imgtool("info", "x")
    assert (done.status, done.stderr) == (1, "imgtool: Out of memory\n")


def test_a_command_may_choose_its_status(imgtool: Imgtool, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def three() -> int:
        return 3

    monkeypatch.setattr(main.Commands, "get_command", lambda *_: three)
    assert imgtool("info").status == 3


@pytest.mark.skipif(os.name == "nt", reason="there are no POSIX pipes")
def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", "--help"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("imgtool co", [name for name in sorted(main.COMMANDS) if name.startswith("co")]),
        ("imgtool convert -O qc", ["qcow2"]),
        ("imgtool info -f r", ["raw"]),
    ],
)
def test_shell_completion(words: str, expected: list[str]) -> None:
    environment = {
        **os.environ,
        "_IMGTOOL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from imgtool.cli.main import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    offered = [line.split(",")[1] for line in done.stdout.splitlines()]
    assert offered == expected


def test_interruption_while_modules_are_loaded() -> None:
    """Nothing but one line: commands are often stopped before they have begun."""
    program = """
import sys
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from imgtool.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "imgtool: Interrupted\n")
