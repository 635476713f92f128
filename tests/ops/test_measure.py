"""Measurements hold: images that are made turn out as large as was said."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from imgtool.chain import Reference
from imgtool.errors import BadOption
from imgtool.ops.measure import measure


@pytest.mark.parametrize(
    "options",
    [{}, {"cluster_size": "4k"}, {"cluster_size": "2M"}, {"extended_l2": "on"},
     {"refcount_bits": 64, "cluster_size": 512}, {"preallocation": "metadata"}],
)  # fmt: skip
def test_images_are_no_larger(options: dict[str, object], tmp_path: Path) -> None:
    source = tmp_path / "a.raw"
    with open(source, "wb") as file:
        file.truncate(8 << 20)
        for offset in (0, 100_000, 3 << 20, (8 << 20) - 1):
            file.seek(offset)
            file.write(b"x")
    predicted = measure(Reference(source, "raw"), format="qcow2", options=options)
    target = tmp_path / "a.qcow2"
    imgtool.convert(source, target, source_format="raw", format="qcow2", **options)
    stored = target.stat().st_blocks * 512
    assert stored <= predicted.required <= predicted.fully_allocated


def test_an_empty_disk() -> None:
    found = measure(size=1 << 30, format="qcow2")
    assert found.to_dict() == {"required": 393216, "fully-allocated": 1074135040}
    assert measure(size=1000).required == 1024


def test_an_overlay_may_share_nothing(tmp_path: Path) -> None:
    options = {"backing_file": "x", "backing_fmt": "raw"}
    found = measure(size=1 << 30, format="qcow2", options=options)
    assert found.required == found.fully_allocated


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 1, "source": Reference("x")},
        {"size": 1, "format": "nonsense"},
        {"size": 1, "format": "qcow2", "options": {"cluster_size": "3"}},
        {"size": 1, "options": {"nonsense": "1"}},
        {"size": 1 << 62, "format": "qcow2"},
    ],
)
def test_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        measure(**arguments)  # type: ignore[arg-type]
