"""``io``: what it has of its own; tests/compat/test_io.py holds the rest against qemu-io."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

import imgtool as library
from imgtool.cli.io.figures import amount, dump, report
from imgtool.cli.io.verbs import VERBS
from tests.cli.conftest import Imgtool


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"guessed!" * 8192)
    library.create(tmp_path / "a.qcow2", "1M")


def test_what_is_guessed_to_be_raw_is_read_and_not_written(
    imgtool: Imgtool, tmp_path: Path
) -> None:
    before = (tmp_path / "a.raw").read_bytes()
    for line in ("write 0 1", "write -z 4k 1", "discard 0 512", "truncate 1M", "writev 0 1"):
        done = imgtool("io", "-c", line, "-c", "read -qP 0x67 0 1", "-c", "length", "a.raw")
        assert (done.status, done.stdout) == (1, "64 KiB\n")
        assert "give the format with -f" in done.stderr
    assert (tmp_path / "a.raw").read_bytes() == before
    assert imgtool("io", "-f", "raw", "-c", "write -q 0 1", "a.raw").status == 0
    assert (tmp_path / "a.raw").read_bytes() != before


def test_read_only_leaves_the_file_alone(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").chmod(0o444)
    before = (tmp_path / "a.qcow2").read_bytes()
    done = imgtool("io", "-r", "-c", "write 0 1", "-c", "flush", "-c", "map", "a.qcow2")
    assert done.status == 1
    assert done.stderr == "imgtool: a.qcow2: The disk is open read-only\n"
    assert done.stdout == "1 MiB (0x100000) bytes not allocated at offset 0 bytes (0x0)\n"
    assert (tmp_path / "a.qcow2").read_bytes() == before


def test_compressed_clusters_are_replaced(imgtool: Imgtool) -> None:
    lines = ("write -q 0 64k", "write -qcP 5 0 64k", "read -qP 5 0 64k", "write -qcP 6 0 64k")
    options = [part for line in (*lines, "read -qP 6 0 64k") for part in ("-c", line)]
    done = imgtool("io", *options, "a.qcow2")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert library.check("a.qcow2").clean


def test_help_tells_about_every_verb(imgtool: Imgtool) -> None:
    done = imgtool("io", "-c", "help")
    assert done.status == 0
    for verb in {verb.name: verb for verb in VERBS.values()}.values():
        assert f"\n{verb.usage}\n" in f"\n{done.stdout}"
        told = imgtool("io", "-c", f"help {verb.name}").stdout
        letters = set(verb.letters.replace(":", ""))
        assert set(re.findall(r"^ -(\w), -- ", told, re.MULTILINE)) == letters
        assert set(re.findall(r"[a-zA-Z]", "".join(re.findall(r"\[-(\w+)", verb.takes)))) <= letters
        # What has its own argument is shown with it, and no other option is left out.
        assert {letter for letter in letters if letter not in verb.takes} <= {"p"}


def test_without_an_image_only_help_works(imgtool: Imgtool) -> None:
    done = imgtool("io", "-c", "length", "-c", "write 0 1", "-c", "help quit")
    assert (done.status, done.stdout) == (1, f"{VERBS['quit'].usage}\n")
    assert done.stderr == 2 * "imgtool: no image is open: name one on the command line\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_prompted(imgtool: Imgtool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal("length\n\nbogus\n"))
    done = imgtool("io", "a.qcow2")
    assert done.status == 1
    assert done.stdout == "imgtool> 1 MiB\nimgtool> imgtool> imgtool> "
    assert done.stderr == 'command "bogus" not found\n'


def test_what_is_typed_cannot_forge_lines(imgtool: Imgtool) -> None:
    done = imgtool(
        "io", "-c", "\x1b[2Jbogus", "-c", "read \x1b[2J 1", "-c", "help \x1b[2J", "a.qcow2"
    )
    assert "\x1b" not in done.stdout + done.stderr


def test_damage_is_told(imgtool: Imgtool, tmp_path: Path) -> None:
    assert imgtool("io", "-c", "write -qcP 5 0 64k", "a.qcow2").status == 0
    with library.open(tmp_path / "a.qcow2") as disk:
        (first, *_) = disk._map(0, 65536)  # type: ignore[attr-defined]
    with open(tmp_path / "a.qcow2", "r+b") as file:
        file.seek(first.host_offset)
        file.write(b"\xff" * 30)
    done = imgtool("io", "-c", "read 0 64k", "a.qcow2")
    assert (done.status, done.stdout) == (1, "read failed: Input/output error\n")
    assert done.stderr.startswith("imgtool: a.qcow2: ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (1023, "1023 bytes"),
        (68.468038, "68.468038 bytes"),
        (1024, "1 KiB"),
        (1536, "1.500 KiB"),
        (1 << 20, "1 MiB"),
        ((1 << 30) + (1 << 20), "1.001 GiB"),
        (3 << 40, "3 TiB"),
        (5 << 50, "5 PiB"),
        (7 << 60, "7 EiB"),
    ],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


def test_reports() -> None:
    assert report("read", 5, 1536, 0.5, machine=False) == (
        "read 1536/1536 bytes at offset 5\n"
        "1.500 KiB, 1 ops; 00.50 sec (3 KiB/sec and 2.0000 ops/sec)"
    )
    assert report("read", 5, 1536, 0.5, machine=True) == "1536,1,0:00:00.50,3072.000,2.000"
    assert "1 ops; 1:02:03.45 (" in report("wrote", 0, 1, 3723.45, machine=False)
    assert "1 ops; 0:01:00.00 (" in report("wrote", 0, 1, 60, machine=False)
    report("read", 0, 0, 0.0, machine=False)


def test_dumps() -> None:
    rows = list(dump(0xFFFFFFF0, b"Az09 ~!\x00\xff\xe9" + bytes(6) + b"\n"))
    assert rows == [
        "fffffff0:  41 7a 30 39 20 7e 21 00 ff e9 00 00 00 00 00 00  Az09............",
        "100000000:  0a  .",
    ]
