"""Names that would write to the terminal: shown escaped to people, and exactly to programs."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

import imgtool as library
from imgtool.cli.errors import printable
from tests.cli.conftest import Imgtool
from tests.kit import qcow2
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import bitmap_entry

SIZE = 1 << 20

NAMES = [
    "a\nb",
    "a\r\nimage: safe",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link",
    "a\x08\x08b",
    "tab\tbed",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "\u200e\u200f\u061c",
    "\u200b\u200d\ufeff",
    "\u2028\u2029",
    "\ue000",
    "\U000e0041",
    "\u00ad",
]


def shown(text: str) -> None:
    """Whether all of it could be printed, but for the ends of lines and the layout of tables."""
    for line in text.split("\n"):
        assert line.isprintable(), line


def escaped(name: str) -> str:
    return printable(name)


@pytest.fixture(params=NAMES, ids=ascii)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(name: str) -> bytes:
    return name.encode()


def test_escapes_are_told_apart() -> None:
    assert len({printable(name) for name in NAMES}) == len(NAMES)
    for name in NAMES:
        assert printable(name).isprintable()
        assert printable(name) != name
    assert printable("disk é \u4e2d.qcow2") == "disk é \u4e2d.qcow2"


def test_names_in_images(tmp_path: Path, name: str, imgtool: Imgtool) -> None:
    """Backing file, its format, data file, snapshots and bitmaps, in every output that has them."""
    builder = ImageBuilder(
        SIZE, cluster_bits=12, backing=stored(name), backing_format=stored(name)
    )  # fmt: skip
    builder.data(0)
    builder.snapshot(stored(name), stored(name))
    directory = bitmap_entry(stored(name), bits=12)
    where = builder.place(directory, "directory")
    packed = struct.pack(">IIQQ", 1, 0, len(directory), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    builder.header["autoclear_features"] = qcow2.BITMAPS
    (tmp_path / "x.qcow2").write_bytes(builder.build())

    done = imgtool("info", "x.qcow2")
    shown(done.stdout)
    for line in ("backing file: {}", "backing file format: {}", "name: {}"):
        assert line.format(escaped(name)) in done.stdout
    shown(imgtool("snapshot", "-l", "x.qcow2").stdout)
    assert escaped(name) in imgtool("snapshot", "-l", "x.qcow2").stdout

    document = json.loads(imgtool("info", "--output=json", "x.qcow2").stdout)
    assert document["backing-filename"] == document["backing-filename-format"] == name
    assert [one["name"] for one in document["snapshots"]] == [name]
    bitmaps = document["format-specific"]["data"]["bitmaps"]
    assert [one["name"] for one in bitmaps] == [name]
    listed = json.loads(imgtool("snapshot", "-l", "--output=json", "x.qcow2").stdout)
    assert [(one["id"], one["name"]) for one in listed] == [(name, name)]

    for arguments in (
        ["map", "x.qcow2"],
        ["check", "x.qcow2"],
        ["convert", "-O", "raw", "x.qcow2", "out"],
        ["convert", "-l", "missing" + name, "-O", "raw", "x.qcow2", "out"],
        ["compare", "x.qcow2", "x.qcow2"],
        ["bitmap", "--list", "x.qcow2", name],
        ["bitmap", "--list", "x.qcow2", "missing" + name],
        ["info", "--backing-chain", "x.qcow2"],
        ["rebase", "-b", "", "x.qcow2"],
        ["snapshot", "-d", "missing" + name, "x.qcow2"],
    ):
        done = imgtool(*arguments)
        shown(done.stdout)
        shown(done.stderr)
        assert done.status in (0, 1, 2, 3)


def test_names_of_features(tmp_path: Path, name: str, imgtool: Imgtool) -> None:
    table = struct.pack(">BB46s", 0, 60, stored(name))
    image = ImageBuilder(
        SIZE,
        header={"incompatible_features": 1 << 60},
        extensions=[(qcow2.FEATURE_NAMES, table)],
    ).build()
    (tmp_path / "x.qcow2").write_bytes(image)
    done = imgtool("info", "x.qcow2")
    shown(done.stderr)
    assert done.stderr.count("\n") == 1
    assert escaped(name) in done.stderr


def test_names_of_data_files(tmp_path: Path, name: str, imgtool: Imgtool) -> None:
    builder = ImageBuilder(SIZE, external=True, extensions=[(qcow2.DATA_FILE, stored(name))])
    builder.data(0)
    (tmp_path / "x.qcow2").write_bytes(builder.build())
    done = imgtool("info", "x.qcow2")
    shown(done.stdout)
    assert f"data file: {escaped(name)}" in done.stdout
    document = json.loads(imgtool("info", "--output=json", "x.qcow2").stdout)
    assert document["format-specific"]["data"]["data-file"] == name
    done = imgtool("map", "x.qcow2")
    assert done.status == 1
    assert done.stderr.count("\n") == 1
    shown(done.stderr)


def test_names_of_the_files_themselves(tmp_path: Path, name: str, imgtool: Imgtool) -> None:
    """A name on the command line comes from a listing of somebody else's folder, as likely."""
    name = name.replace("/", "\u2215")
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(os.urandom(1 << 16))
    over = ImageBuilder(SIZE, backing=stored(name), backing_format=b"raw").build()
    (tmp_path / "over.qcow2").write_bytes(over)
    for arguments in (
        ["info", path],
        ["info", "--backing-chain", "over.qcow2"],
        ["map", path],
        ["map", "over.qcow2"],
        ["check", path],
        ["hash", path],
        ["measure", "-O", "qcow2", path],
        ["compare", path, path],
        ["convert", "-p", "-O", "qcow2", path, f"{path}.out"],
        ["create", "-f", "qcow2", f"{path}.new", "1M"],
        ["create", "-f", "qcow2", "-b", path, "-F", "raw", f"{path}.over"],
        ["resize", path, "1M"],
        ["info", f"{path}.missing"],
        ["info", "-f", name, path],
        ["bench", "-c", "1", path],
        ["io", "-r", "-c", "map", path],
        ["io", "-r", "-c", f"read {name}", path],
        ["compact", path],
    ):
        done = imgtool(*arguments)
        # A bar of progress goes back to the beginning of its line.
        shown(done.stdout.replace("%)\r", "%)"))
        shown(done.stderr)
    document = json.loads(imgtool("info", "--output=json", path).stdout)
    assert document["filename"] == path
    documents = json.loads(imgtool("hash", "--output=json", path).stdout)
    assert documents["filename"] == path
    assert library.info(path).filename == path
