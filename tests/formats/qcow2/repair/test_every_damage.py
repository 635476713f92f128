"""Every damage of every kind of image, and damage at random: nothing is lost."""

from __future__ import annotations

import pytest

from imgtool.errors import ImageError
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import DAMAGES, built
from tests.formats.qcow2.repair.judging import assert_repaired, repaired
from tests.kit.corrupt import flips, overwrites
from tests.kit.effort import effort
from tests.kit.qcow2_gallery import GALLERY

#: The kinds of images that go through all of it; a few damages tell whether others differ.
_ALL_DAMAGES = ("v2", "512", "1k", "4k", "extended", "refcount-1", "refcount-64")
_FEW_DAMAGES = ("none", "leaks", "past-end-and-lost", "entry-to-l2", "much")


@pytest.mark.parametrize("name", GALLERY)
def test_every_damage_of_every_kind_of_image(name: str) -> None:
    builder, image = built(name)
    for damage_name in DAMAGES if name in _ALL_DAMAGES else _FEW_DAMAGES:
        damage = DAMAGES[damage_name]
        damaged = damage(builder, image)
        try:
            after, result = repaired(damaged)
        except ImageError:
            # What is left of the file isn't enough of a header, or of snapshots.
            assert damage_name.startswith("cut-"), damage_name
            continue
        try:
            assert_repaired(damaged, after)
        except AssertionError as error:
            raise AssertionError(f"{damage_name}: {error}") from error
        if damage_name == "none":
            assert after == image
        assert result.corruptions == 0


@pytest.mark.parametrize("name", ["v2", "v3", "512", "extended", "refcount-1", "zstd"])
def test_dry_run_foretells_and_changes_nothing(name: str) -> None:
    builder, image = built(name)
    for damage in DAMAGES.values():
        damaged = damage(builder, image)
        storage = MemoryStorage(damaged, "x.img", read_only=True)
        try:
            foretold = repair(storage, "all", dry_run=True)
        except ImageError:
            with pytest.raises(ImageError):
                repaired(damaged)
            continue
        assert storage.getvalue() == damaged
        done = repaired(damaged)[1]
        assert foretold.leaks_fixed == done.leaks_fixed
        assert foretold.corruptions_fixed == done.corruptions_fixed
        assert foretold.leaks >= foretold.leaks_fixed
        assert foretold.messages == done.messages


# Whatever the bytes are


@pytest.mark.parametrize("name", ["v2", "512", "4k", "extended", "refcount-1", "refcount-64"])
def test_damage_at_random(name: str) -> None:
    builder, image = built(name)
    regions = [place for key, place in builder.places.items() if key != "header" and place[1]]
    for seed, maker in ((11, flips), (12, overwrites)):
        for damaged in maker(image, regions, seed=seed, count=effort(12)):
            try:
                after, result = repaired(damaged)
            except ImageError as error:
                assert error.filename == "x.img"  # noqa: PT017
                continue
            assert result.corruptions == 0, result.messages
            assert_repaired(damaged, after)


@pytest.mark.parametrize("name", ["v3", "512", "extended"])
def test_damaged_headers_at_random(name: str) -> None:
    """Repaired or refused, and never anything else."""
    image = built(name)[1]
    for damaged in overwrites(image, [(0, 112)], seed=13, count=effort(40)):
        try:
            after, result = repaired(damaged)
        except ImageError as error:
            assert error.filename == "x.img"  # noqa: PT017
            continue
        if not result.corruptions:
            assert_repaired(damaged, after)
