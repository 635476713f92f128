"""``map`` prints what ``qemu-img map`` prints, byte for byte."""

from __future__ import annotations

import pytest

from tests.compat.corpus import DAMAGED, WHOLE, Both

#: What qemu-img refuses to open, or to follow, for something that a map has no use for: broken
#: bitmaps and snapshots, and clusters that lie elsewhere in a data file than the guest has them.
MORE_LENIENT = {
    *(f"damaged-bitmap-{what}" for what in ("count", "directory-past-end", "flags")),
    *(f"damaged-bitmap-{what}" for what in ("granularity", "table-unaligned", "type")),
    "damaged-bitmap-data-reserved",
    "damaged-bitmap-data-unaligned",
    "damaged-data-file-past-end",
    "damaged-snapshot-extra-large",
}
#: L2 tables past the end of the file, which qemu-img takes for zeros.
STRICTER = {"damaged-cut-before-l2", "damaged-cut-in-l2", "damaged-l1-past-end"}


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("name", WHOLE)
def test_like_qemu_img(name: str, output: str, both: Both) -> None:
    theirs, ours = both.run(name, "map", "-f", WHOLE[name].format, "--output", output, "{}")
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, both: Both) -> None:
    theirs, ours = both.run(name, "map", "--output", "json", "{}")
    if name in MORE_LENIENT or name in STRICTER:
        assert (theirs.status, ours.status) == ((1, 0) if name in MORE_LENIENT else (0, 1))
        return
    assert ours.status == theirs.status
    if not ours.status:
        assert ours.stdout == theirs.stdout
    else:
        assert ours.stderr.count("\n") == 1


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize(
    "part",
    ["-s 100k", "-l 100k", "-s 1M -l 1M", "-s 4M", "-s 5M", "-s 64k -l 0", "-s 511 -l 1",
     "-s 3M -l 100M", "-s 0x10000", "-l 1.5M", "--start-offset=64k --max-length=64k"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["raw-holes", "three-deep-sizes", "extended-64k", "scattered"])
def test_parts(name: str, part: str, output: str, both: Both) -> None:
    theirs, ours = both.run(name, "map", "--output", output, *part.split(), "{}")
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout) == (0, theirs.stdout)


@pytest.mark.parametrize(
    "arguments",
    ["-s -1 {}", "-s nonsense {}", "-l -1 {}", "-l 9E {}", "", "{} {}", "-s {}", "nothing-here"],
)
def test_refused(arguments: str, both: Both) -> None:
    theirs, ours = both.run("cluster-64k", "map", *arguments.split())
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout) == (1, "")
    if arguments.startswith("-") and " " in arguments:
        first = theirs.stderr.split("\n")[0].replace("qemu-img: ", "imgtool: ")
        assert ours.stderr.split("\n")[0] == first or arguments == "-s {}"


def test_image_options(both: Both) -> None:
    options = "driver=qcow2,file.filename={},backing.driver=raw,backing.file.filename=base.raw"
    theirs, ours = both.run("overlay-on-raw", "map", "--output", "json", "--image-opts", options)
    assert ours == theirs
