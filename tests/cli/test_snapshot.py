"""``snapshot`` at the command line: the long options, which qemu-img 10 does not understand."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Imgtool


def test_long_options_and_json(imgtool: Imgtool) -> None:
    imgtool("create", "-q", "-f", "qcow2", "disk.q", "1M")
    assert imgtool("snapshot", "--create", "one", "disk.q").status == 0
    assert imgtool("snapshot", "--create=two", "disk.q").stdout == ""
    assert imgtool("snapshot", "--apply", "1", "disk.q").status == 0
    assert imgtool("snapshot", "--delete", "one", "disk.q").status == 0
    listed = imgtool("snapshot", "--list", "--output", "json", "disk.q")
    assert [(one["id"], one["name"]) for one in json.loads(listed.stdout)] == [("2", "two")]


def test_messages(imgtool: Imgtool, tmp_path: Path) -> None:
    imgtool("create", "-q", "-f", "raw", "disk.raw", "1M")
    done = imgtool("snapshot", "-c", "x", "-f", "raw", "disk.raw")
    assert done.stderr == (
        "imgtool: disk.raw: Could not create snapshot 'x': Operation not supported: "
        "images of format 'raw' have no snapshots\n"
    )
    done = imgtool("snapshot", "-d", "x", "disk.raw")
    assert done.stderr == (
        "imgtool: Could not open 'disk.raw': Image format was not specified and probing guessed "
        "raw: a guess is not written to, so specify the 'raw' format explicitly with -f raw\n"
    )
