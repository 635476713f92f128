"""Repairs of leaks alone, and marks that stay where something is left."""

from __future__ import annotations

import pytest

from imgtool.errors import ImageError
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import LOST, both, built, fill, mark, past_end, to_place
from tests.formats.qcow2.repair.judging import assert_repaired, marks, repaired, seen
from tests.kit.qcow2 import CORRUPT, DIRTY, ImageBuilder
from tests.kit.views import assert_nothing_lost


def test_only_leaks() -> None:
    builder, image = built("v3")
    damaged = both(fill("refcount-block-0", 0xFF), mark(DIRTY))(builder, image)
    after, result = repaired(damaged, "leaks")
    assert result.leaks_fixed
    assert result.leaks == 0
    assert_repaired(damaged, after)


def test_only_leaks_leaves_corruption_and_marks() -> None:
    builder, image = built("v3")
    damaged = both(
        fill("refcount-block-0", 0xFF), past_end(0), mark(DIRTY | CORRUPT)
    )(builder, image)  # fmt: skip
    after, result = repaired(damaged, "leaks")
    assert result.leaks == 0
    assert result.corruptions
    assert marks(after) == 3
    assert_nothing_lost(seen(damaged), seen(after))


def test_only_leaks_refuses_refcounts_that_are_no_help() -> None:
    builder, image = built("v3")
    for damage in (LOST, fill("refcount-table", 0), to_place("refcount-block-0")):
        storage = MemoryStorage(damage(builder, image), "x.img")
        with pytest.raises(ImageError, match="-r all"):
            repair(storage, "leaks")
        assert storage.getvalue() == damage(builder, image)


def test_marks_stay_where_something_is_left() -> None:
    """Snapshots beside an external data file are nothing that could be repaired."""
    builder = ImageBuilder(1 << 20, external=True)
    builder.data(0)
    builder.snapshot(b"1", b"first")
    image = mark(DIRTY | CORRUPT)(builder, builder.build())
    after, result = repaired(image)
    assert result.corruptions
    assert marks(after) == 3
