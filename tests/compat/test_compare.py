"""``compare`` says what ``qemu-img compare`` says."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.compat.corpus import WHOLE, Both
from tests.kit.effort import effort
from tests.kit.tools import require_tool

#: Data files are looked for in the working directory, by qemu-img, and beside the image.
COMPARABLE = [
    name
    for name in WHOLE
    if not name.startswith("data-file") and name not in ("large-sparse", "preallocated-64G")
]


def compare(both: Both, first: str, second: str, *options: str) -> tuple[object, object]:
    formats = [both.path(name).suffix[1:] for name in (first, second)]
    theirs, ours = both.run(
        first, "compare", *options, "-f", formats[0], "-F", formats[1], "{}",
        str(both.path(second)),
    )  # fmt: skip
    return theirs, ours


@pytest.mark.parametrize("seed", range(effort(10)))
def test_like_qemu_img(seed: int, both: Both) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        first, second = chance.choice(COMPARABLE), chance.choice(COMPARABLE)
        theirs, ours = compare(both, first, second)
        assert ours == theirs, (first, second)


@pytest.mark.parametrize("name", COMPARABLE)
def test_with_itself(name: str, both: Both) -> None:
    for options in ((), ("-s",)):
        theirs, ours = compare(both, name, name, *options)
        assert ours == theirs == (0, "Images are identical.\n", "")


@pytest.mark.parametrize(
    "second",
    ["cluster-64k", "raw-holes", "raw-full", "empty", "no-size", "cluster-4k", "zlib", "overlay",
     "overlay-larger", "v2-cluster-64k",
     "preallocated-metadata", "extended-64k", "snapshot-written"],
)  # fmt: skip
def test_strict(second: str, both: Both) -> None:
    """The offset may differ: qemu-img also minds whether a range goes on to the disk's end."""
    theirs, ours = compare(both, "cluster-64k", second, "-s")
    assert ours.status == theirs.status
    assert ours.stdout.split(" ")[:3] == theirs.stdout.split(" ")[:3]


def make(directory: Path, *arguments: str) -> None:
    subprocess.run([require_tool(arguments[0]), *arguments[1:]], cwd=directory, check=True)


def test_messages(tmp_path: Path, both: Both) -> None:
    for name, size, where in (
        ("a", 1 << 20, None), ("b", 1 << 20, None), ("long", 2 << 20, None),
        ("x", 1 << 20, 700_000), ("tail", 2 << 20, 1_500_000), ("first", 1 << 20, 0),
        ("last", 1 << 20, (1 << 20) - 1),
    ):  # fmt: skip
        with open(tmp_path / f"{name}.raw", "wb") as file:
            if where is not None:
                file.seek(where)
                file.write(b"x")
            file.truncate(size)
        make(tmp_path, "qemu-img", "convert", "-O", "qcow2", f"{name}.raw", f"{name}.qcow2")
    names = [path.name for path in sorted(tmp_path.iterdir())]
    for first in names:
        for second in names:
            theirs, ours = both.run_in(tmp_path, "compare", first, second)
            assert ours == theirs, (first, second)
    for options in (("-q",), ("-s", "-q"), ("-U",), ("-T", "none"), ("-f", "raw")):
        for second in ("b.raw", "long.raw", "x.raw", "tail.raw"):
            theirs, ours = both.run_in(tmp_path, "compare", *options, "-F", "raw", "a.raw", second)
            assert ours == theirs, (options, second)


def test_errors(tmp_path: Path, both: Both) -> None:
    make(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    for arguments in (
        ("nothing", "a.qcow2"), ("a.qcow2", "nothing"), ("a.qcow2",), (), ("a", "b", "c"),
        ("-f", "nonsense", "a.qcow2", "a.qcow2"),
    ):  # fmt: skip
        theirs, ours = both.run_in(tmp_path, "compare", *arguments)
        assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout), arguments


@pytest.mark.parametrize(("where", "status"), [("data", 4), ("mapping", 3)])
def test_unreadable(where: str, status: int, tmp_path: Path, both: Both) -> None:
    writes = ("-c", "write -q -c -P 1 0 64k", "-c", "write -q -P 2 64k 64k")
    make(tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    make(tmp_path, "qemu-io", *writes, "a.qcow2")
    image = bytearray((tmp_path / "a.qcow2").read_bytes())
    (tmp_path / "b.qcow2").write_bytes(image)
    table = int.from_bytes(image[40:48], "big")
    entries = int.from_bytes(image[table : table + 8], "big") & 0x00FFFFFFFFFFFE00
    if where == "data":
        packed = int.from_bytes(image[entries : entries + 8], "big") & ((1 << 54) - 1)
        image[packed : packed + 16] = b"\xff" * 16
    else:
        image[entries + 8 + 6] ^= 2
    (tmp_path / "a.qcow2").write_bytes(image)
    for names in (("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")):
        theirs, ours = both.run_in(tmp_path, "compare", *names)
        assert ours.status == theirs.status == status
        assert (ours.stdout, theirs.stdout) == ("", "")
        assert ours.stderr.count("\n") == 1


def test_a_cache_mode_that_is_none(both: Both) -> None:
    for arguments in (
        ("compare", "-T", "nope", "{}", "{}"),
        ("check", "-T", "nope", "{}"),
        ("convert", "-T", "nope", "{}", "b.raw"),
    ):
        theirs, ours = both.run("cluster-64k", *arguments)
        assert ours == theirs._replace(stderr=theirs.stderr.replace("qemu-img:", "imgtool:"))
        assert ours.status == (2 if arguments[0] == "compare" else 1)
