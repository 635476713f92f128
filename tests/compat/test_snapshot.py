"""``snapshot`` next to ``qemu-img snapshot``: tables, exit status, and what snapshots hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.compat.images import same_disks
from tests.compat.twins import Twins
from tests.compat.workshop import Workshop
from tests.kit import referee
from tests.kit.machine import save_machine

STEPS = [
    ("-c", "one"),
    ("-c", "one"),
    ("-q", "-c", "two"),
    ("-f", "qcow2", "-c", "1"),
    ("-c", ""),
    ("-c", "n" * 255),
    ("-c", "late"),
    ("-a", "one"),
    ("-a", "1"),
    ("-a", "3"),
    ("-d", "one"),
    ("-d", "one"),
    ("-d", "late"),
]

REFUSED = [
    ("disk.q", "-a", "nope"),
    ("disk.q", "-d", "nope"),
    ("disk.q", "-d", "2"),
    ("-l", "-c", "x", "disk.q"),
    ("-c", "x", "-d", "y", "disk.q"),
    ("-c", "x", "-c", "y", "disk.q"),
    ("-d", "one", "-d", "two", "disk.q"),
    (),
    ("-c", "x"),
    ("-l", "disk.q", "disk.raw"),
    ("-U", "-c", "x", "disk.q"),
    ("-l", "nowhere.q"),
    ("-f", "raw", "-c", "x", "disk.raw"),
    ("-f", "raw", "-a", "x", "disk.raw"),
    ("-f", "raw", "-d", "x", "disk.raw"),
    ("-f", "qcow2", "-l", "disk.raw"),
    ("-c", "x", "data.q"),
    ("-d", "x", "data.q"),
    ("-c", "x", "narrow.q"),
]

LISTED = [
    ("disk.q",),
    ("-l", "disk.q"),
    ("-q", "--list", "disk.q"),
    ("-U", "-l", "disk.q"),
    ("--image-opts", "driver=qcow2,file.filename=disk.q"),
    ("-l", "disk.raw"),
    ("-l", "-f", "raw", "disk.raw"),
    ("-l", "data.q"),
    ("-l", "empty.q"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = Workshop(tmp_path_factory.mktemp("snapshot") / "images")
    for name, kind, options in (
        ("disk.q", "qcow2", ""),
        ("empty.q", "qcow2", ""),
        ("disk.raw", "raw", ""),
        ("data.q", "qcow2", "data_file=data.raw"),
        ("narrow.q", "qcow2", "refcount_bits=1"),
    ):
        shop.create(Path(name), kind, "2M", options)
    shop.io(Path("narrow.q"), "qcow2", "write -P 7 0 100k")
    for number in (1, 2):
        shop.io(Path("disk.q"), "qcow2", f"write -P {number} {number * 100}k 200k")
        shop.img("snapshot", "-c", f"snap{number}", "disk.q")
    return shop.directory


def _undated(table: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", table)


def test_a_life_of_snapshots(prepared: Twins) -> None:
    """Each step is taken by both, each on its own image, and the outcomes are the same."""
    for number, step in enumerate(STEPS, 10):
        # qemu's directory holds what both have so far done alike.
        theirs, ours = prepared.run("snapshot", *step, "disk.q")
        assert ours == theirs, step
        assert ours.status == 0
        tables = [
            _undated(referee.must("qemu-img", "snapshot", "-l", base / "disk.q"))
            for base in (prepared.qemu, prepared.imgtool)
        ]
        assert tables[0] == tables[1], step
        same_disks(prepared, "disk.q")
        prepared.io("-c", f"write -P {number} {number * 50}k 130k", "disk.q")


@pytest.mark.parametrize("arguments", LISTED)
def test_lists(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("snapshot", *arguments) == 0


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("snapshot", *arguments) == 1
    same_disks(prepared, "disk.q")
    assert referee.check(prepared.imgtool / "narrow.q").get("corruptions", 0) == 0


def test_machine_states_are_listed(prepared: Twins) -> None:
    save_machine(prepared.qemu / "disk.q", "state")
    assert prepared.alike("snapshot", "-l", "disk.q") == 0
    theirs, ours = prepared.run("info", "--output=json", "disk.q")
    assert json.loads(ours.stdout)["snapshots"] == json.loads(theirs.stdout)["snapshots"]
    prepared.extra = ("--output", "json")
    _, ours = prepared.run("snapshot", "-l", "disk.q")
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)["snapshots"]
