"""``check`` says what ``qemu-img check`` says: stdout to the letter, findings one by one."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from imgtool.chain import Reference
from imgtool.cli.render import to_json
from imgtool.errors import ImageError
from imgtool.ops.check import check
from tests.compat.corpus import RECIPES, Both
from tests.kit.corrupt import flips, overwrites
from tests.kit.effort import effort
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.tools import require_tool

#: A table that ends past the end of the file is refused; qemu-img takes the rest for zeros.
STRICTER = {"damaged-snapshot-count"}


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("name", RECIPES)
def test_like_qemu_img(name: str, output: str, both: Both) -> None:
    theirs, ours = both.run(name, "check", "--output", output, "{}")
    if name in STRICTER:
        assert (theirs.status, ours.status) == (2, 1)
        assert ours.stderr.count("\n") == 1
        return
    assert ours.stdout == theirs.stdout
    assert ours.status == theirs.status
    if ours.stdout:
        assert ours.findings == theirs.findings


def test_quiet(both: Both) -> None:
    for arguments in (("-q",), ("-q", "--output", "json"), ("-q", "-U", "-T", "none")):
        theirs, ours = both.run("damaged-everything", "check", *arguments, "{}")
        assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout) == (2, "")
        assert ours.findings == theirs.findings


def test_image_options(both: Both) -> None:
    options = "driver=qcow2,file.driver=file,file.filename={}"
    theirs, ours = both.run("zlib", "check", "--output", "json", "--image-opts", options)
    assert ours == theirs


@pytest.mark.parametrize("damage", [flips, overwrites])
@pytest.mark.parametrize("name", GALLERY)
def test_random_damage(name: str, damage: type[flips], tmp_path: Path) -> None:
    """Whatever is wrong with the metadata, both find as much of it, unless one can't read on."""
    builder = GALLERY[name]()
    image, compared = builder.build(), 0
    path = tmp_path / "image.qcow2"
    for changed in damage(image, builder.regions(), seed=len(name), count=effort(4)):
        path.write_bytes(changed)
        done = subprocess.run(
            [require_tool("qemu-img"), "check", "-f", "qcow2", "--output", "json", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        told: list[str] = []
        try:
            ours = check(Reference(path, "qcow2"), report=told.append)
        except ImageError:
            continue
        if not done.stdout:
            continue
        assert to_json(ours.to_dict()) == done.stdout.rstrip("\n")
        theirs = [line for line in done.stderr.split("\n") if line and line[:9] != "qemu-img:"]
        assert Counter(told) == Counter(theirs)
        compared += 1
    assert compared
