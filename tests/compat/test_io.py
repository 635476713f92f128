"""``io`` next to qemu-io: what is printed but for the figures, the status, and what is written."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

import imgtool
from imgtool.cli.main import run
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit.referee import must

_SECONDS = r"(?:\d+:\d\d:)?\d\d\.\d\d(?: sec)?"
_FIGURES = re.compile(rf"ops; {_SECONDS} \([\d.]+ [KMGT]?i?B(?:ytes)?/sec and [\d.]+ ops/sec\)")
_MACHINE = re.compile(r"^(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$", re.MULTILINE)
#: What qemu-io says a verb takes ends in its own words.
_USAGE = re.compile(r"^(\w+) (?:\[.*)?(?:off|offset).* -- .*$", re.MULTILINE)


def _plain(printed: str) -> str:
    printed = _FIGURES.sub("ops; FIGURES", printed.replace("bytes/sec", "Bytes/sec"))
    printed = _MACHINE.sub(r"\1,FIGURES", printed)
    return _USAGE.sub(r"usage of \1", printed).replace("qemu-io> ", "")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qcow2 disk of 4 MiB over a base of 3 MiB, a raw one, and a file with a pattern."""
    workshop = Workshop(tmp_path_factory.mktemp("io") / "images")
    base, top, raw = (workshop.directory / name for name in ("base.q", "a.q", "a.raw"))
    workshop.create(base, "qcow2", "3M", "")
    workshop.io(base, "qcow2", "write -P 1 0 1M")
    workshop.create(top, "qcow2", "4M", "backing_file=base.q,backing_fmt=qcow2")
    workshop.io(top, "qcow2", "write -P 2 512k 4k", "write -z 2M 64k")
    workshop.create(raw, "raw", "4M", "")
    workshop.io(raw, "raw", "write -P 3 1M 64k")
    (workshop.directory / "pattern").write_bytes(b"abc\x00\x7f\xffXYZ ~9!")
    (workshop.directory / "empty").touch()
    return workshop.directory


def _alike(twins: Twins, name: str, *lines: str, options: tuple[str, ...] = ()) -> int:
    arguments = ["-f", "raw" if name.endswith(".raw") else "qcow2", *options]
    for line in lines:
        arguments += ["-c", line]
    theirs, ours = twins.run_io(*arguments, name)
    assert _plain(ours.stdout).split("\n") == _plain(theirs.stdout).split("\n"), lines
    assert ours.status == theirs.status, lines
    must("qemu-img", "compare", f"qemu/{name}", f"imgtool/{name}", cwd=twins.base)
    return ours.status


#: Lines that succeed, on either format.
_GOOD = (
    ("read 0 512", "read 1 1", "read 0 0", "r 512 3M", "read -q 0 1k", "read -C 512k 4k"),
    ("read -v 524280 40", "read -v 0 0", "readv -v 524280 5 16 17", "read -qv 0 3"),
    ("read -P 2 512k 4k", "read -P 0x2 -s 512 -l 1k 512k 4k", "read 0 -P 1 512"),
    ("write 100 1000", "read -v 90 40", "w -q 1M 64k", "write -P 0xff 3M 1M", "map"),
    ("write -P 010 0 1.5k", "write -C 0x1000 1k", "write -f 5k 1k", "write 0 0", "write -rp 9 1"),
    ("write -s pattern 3 1000", "read -v 0 100", "write -s pattern 2M 5", "writev -P 9 7 1k 2k"),
    ("write -z 1M 64k", "write -zu 0 1M", "write -z 100 1000", "write -zf 3M 10"),
    ("write -zn 0 64k", "write -c -z 128k 64k", "aio_write -zu 0 70k"),
    ("discard -q 0 100k", "discard -C 1M 1M", "d 3M 512"),
    ("aio_write -P 5 64k 512 1k", "aio_flush", "aio_read -v 64k 20"),
    ("map", "alloc 0", "alloc 0 4M", "alloc 1M 1M", "alloc 512 1000", "alloc 4M", "alloc 5M 1"),
    ("length", "l", "truncate 8M", "length", "map", "write 7M 1M", "t -m off 16M", "length"),
    ("flush", "f", "quit", "read 9M 1"),
    ("", "  read   0   512  ", "read 0 512 "),
)


@pytest.mark.parametrize("name", ["a.q", "a.raw"])
@pytest.mark.parametrize("lines", _GOOD, ids=lambda lines: lines[0] or "empty")
def test_what_works(prepared: Twins, name: str, lines: tuple[str, ...]) -> None:
    # The pattern that is read is in one of the images only.
    assert _alike(prepared, name, *lines) == int(name == "a.raw" and lines[0].startswith("read -P"))


#: Lines that fail, each by itself.
_BAD = {
    "others": (
        "bogus",
        "discard 0",
        "discard 0 3G",
        "discard 4M 512",
        "discard x 1",
        "alloc",
        "alloc x",
        "alloc 0 x",
        "alloc 0 1 2",
        "flush x",
        "length 1",
        "map x",
        "truncate x",
        "truncate -1",
        "truncate -m bogus 5M",
        "truncate -m",
        "help bogus",
        "help read write",
    ),
    "read": (
        "read",
        "read 0",
        "read 0 1 2",
        "read x 1",
        "read 0 x",
        "read 0 1e3",
        "read 99999999999999999999 1",
        "read 8E 1",
        "read 7E 1",
        "read 4M 1",
        "read 3M 2M",
        "read 0 3G",
        "read -Z 0 1",
        "read -1 5",
        "read -P 9 0 512",
        "read -P 9 -s 10 -l 20 100 512",
        "readv -P 9 0 1k 1k",
        "read -P 300 0 1",
        "read -P -1 0 1",
        "read -P x 0 1",
        "read -P 09 0 1",
        "read -s 5 0 512",
        "read -l 5 0 512",
        "read -P 0 -s 10 0 5",
        "read -P 0 -l 20 0 5",
        "read -P 0 -l x 0 5",
        "readv 0 1 x",
        "readv 0 3G",
        "readv 0 1G 1G 1G",
        "readv 5T 5",
        "aio_read 0 3G",
    ),
    "write": (
        "write 0",
        "write 4M 1",
        "write 3.5M 1M",
        "write 0 3G",
        "write -z 0 3G",
        "write -zn 0 3G",
        "write -u 0 1",
        "write -n 0 1",
        "write -z -P 1 0 1",
        "write -s pattern -P 1 0 1",
        "write -s nope 0 1",
        "write -s empty 0 1",
        "write -c 1 64k",
        "write -c 512 64k",
        "write -c 0 512",
        "write -c 4M 64k",
        "writev 5T 5",
        "writev 0",
        "aio_write -u 0 1",
        "aio_write -z 0 1 1",
    ),
}


@pytest.mark.parametrize("group", _BAD)
def test_what_fails(prepared: Twins, group: str) -> None:
    assert _alike(prepared, "a.q", *_BAD[group]) == 1
    for line in _BAD[group]:
        assert run(("io", "-f", "qcow2", "-c", line, str(prepared.qemu / "a.q"))) == 1, line


def test_a_failure_stops_nothing(prepared: Twins) -> None:
    assert _alike(prepared, "a.q", "read 9M 1", "write -P 7 1k 1k", "read -P 7 1k 1k") == 1


@pytest.mark.parametrize("line", ["aio_read -P 9 0 512", "aio_read 5M 1", "aio_write 5M 1"])
def test_aio_failures_leave_the_status_alone(prepared: Twins, line: str) -> None:
    assert _alike(prepared, "a.q", line) == 0


def test_raw_holds_no_compressed_data(prepared: Twins) -> None:
    assert _alike(prepared, "a.raw", "write -c 0 64k") == 1


def test_compressed_writes(prepared: Twins) -> None:
    """To clusters that are not there yet: qemu refuses others, imgtool replaces them."""
    lines = ("write -c -P 5 1M 128k", "write -cs pattern 3M 64k", "read -v 3M 64", "map")
    assert _alike(prepared, "a.q", *lines) == 0


def test_read_only(prepared: Twins) -> None:
    lines = ("write 0 1", "write -z 0 1", "discard 0 512", "truncate 8M", "flush", "read 0 1")
    assert _alike(prepared, "a.q", *lines, options=("-r",)) == 1
    assert _alike(prepared, "a.q", "read 0 1", options=("-r", "-U", "-t", "none")) == 0


@pytest.mark.parametrize(
    "text",
    ["", "length\n", "length", "read 0 512\n\n  \nlength\n", "bogus\nlength\nquit\nlength\n"],
)
def test_lines_from_stdin(prepared: Twins, text: str) -> None:
    theirs, ours = prepared.run_io("-f", "qcow2", "a.q", stdin=text)
    assert _plain(ours.stdout) == _plain(theirs.stdout)
    assert ours.status == theirs.status


@pytest.mark.parametrize(
    "arguments",
    [
        ("-f", "qcow2", "nope"),
        ("-f", "bogus", "a.q"),
        ("-f", "qcow2", "a.raw"),
        ("-t", "bogus", "a.q"),
        ("--image-opts", "-f", "qcow2", "driver=qcow2,file.filename=a.q"),
        ("-c", "length"),
    ],
)
def test_images_that_do_not_open(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = prepared.run_io(*arguments)
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout) == (1, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--image-opts", "driver=qcow2,file.filename=a.q"),
        ('json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a.q"}}',),
    ],
)
def test_images_by_their_options(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = prepared.run_io("-c", "length", "-c", "alloc 0 1M", *arguments)
    assert ours == theirs
    assert ours.status == 0


@pytest.mark.parametrize("name", ["a.q", "a.raw"])
def test_both_write_in_turn(prepared: Twins, name: str) -> None:
    """Each finds what the other has written, and the image stays sound."""
    chance = random.Random(name)
    image = str(prepared.qemu / name)
    kind = "raw" if name.endswith(".raw") else "qcow2"
    must("qemu-img", "convert", "-O", "raw", image, prepared.base / "disk")
    disk = bytearray((prepared.base / "disk").read_bytes())
    for turn in range(8):
        lines = []
        for _ in range(6):
            offset = chance.randrange(len(disk) // 512) * 512 + chance.choice((0, 0, 7))
            length = min(chance.choice((1, 512, 65536, 200_000)), len(disk) - offset)
            value = chance.choice((0, *range(1, 256)))
            verb = chance.choice(("write -z", "write -zu")) if not value else f"write -P {value}"
            lines.append(f"{verb} {offset} {length}")
            disk[offset : offset + length] = bytes([value]) * length
            lines.append(f"read -P {value} {offset} {length}")
        options = [part for line in lines for part in ("-c", line)]
        if turn % 2:
            assert run(("io", "-f", kind, *options, image)) == 0, lines
        else:
            must("qemu-io", "-f", kind, *options, image)
    (prepared.base / "disk").write_bytes(disk)
    assert imgtool.compare(image, prepared.base / "disk").identical
    must("qemu-img", "compare", "-f", kind, "-F", "raw", image, prepared.base / "disk")
    if kind == "qcow2":
        must("qemu-img", "check", image)
