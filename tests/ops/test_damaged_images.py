"""Every operation on damaged images: an error of ours, in one line, or a result."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable

import pytest

from imgtool.chain import Opener, Reference
from imgtool.errors import ImageError
from imgtool.ops.check import check
from imgtool.ops.convert import convert
from imgtool.ops.info import info
from imgtool.ops.map import extent_dict, map_image
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import flips, overwrites, truncations
from tests.kit.disks import NONE
from tests.kit.effort import effort
from tests.kit.limits import MiB, measure
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_gallery import GALLERY, encrypted

_SMALL = ("v2", "512", "4k", "extended", "zstd-extended", "refcount-2", "unknown")


@functools.cache
def built(name: str) -> tuple[ImageBuilder, bytes]:
    builder = encrypted() if name == "encrypted" else GALLERY[name]()
    return builder, builder.build()


def damaged(name: str) -> list[bytes]:
    builder, image = built(name)
    places = builder.regions()
    edges = [edge for offset, length in places for edge in (offset, offset + length)]
    return [
        *flips(image, places, seed=11, count=effort(25)),
        *overwrites(image, places, seed=12, count=effort(25)),
        *(image[:length] for length in truncations(len(image), edges)[::9]),
    ]


def reference(image: bytes) -> Reference:
    return Reference(MemoryStorage(image, "x.img"), "qcow2")


def do_info(image: bytes) -> None:
    info(reference(image), opener=Opener(NONE)).to_dict()


def do_check(image: bytes) -> None:
    check(reference(image), opener=Opener(NONE)).to_dict()


def do_map(image: bytes) -> None:
    found = map_image(reference(image), opener=Opener(NONE))
    for extent in itertools.islice(found, 10_000):
        extent_dict(extent)


def do_convert(image: bytes) -> None:
    # A target that holds little: a disk may claim to be of any size.
    target = MemoryStorage(limit=64 * MiB)
    convert(
        [reference(image)],
        Reference(target),
        format="qcow2",
        opener=Opener(NONE),
        check_space=False,
        workers=1,
    )


_CASES = [
    (name, operation) for name in _SMALL for operation in (do_info, do_check, do_map, do_convert)
] + [("encrypted", operation) for operation in (do_info, do_check)]


@pytest.mark.parametrize(("name", "operation"), _CASES)
def test_damaged_images(name: str, operation: Callable[[bytes], None]) -> None:
    images = damaged(name)
    operation(built(name)[1])

    def work() -> list[str]:
        complaints = []
        for image in images:
            try:
                operation(image)
            except ImageError as error:
                complaints.append(str(error))
            except OSError:
                # The small target is full.
                assert operation is do_convert
        return complaints

    complaints, cost = measure(work, ceiling=2 << 30)
    assert cost.memory <= 256 * MiB, f"took {cost.memory / MiB:.0f} MiB"
    assert complaints
    for complaint in complaints:
        assert "'x.img': " in complaint
        assert len(list(io.StringIO(complaint))) == 1
