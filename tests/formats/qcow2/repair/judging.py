"""Repairing an image in memory, and what must be true of it afterwards."""

from __future__ import annotations

import struct

from imgtool.findings import CheckResult
from imgtool.formats.qcow2.check import check
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import INCOMPATIBLE
from tests.kit.disks import NONE, open_disk
from tests.kit.qcow2 import CORRUPT, DIRTY
from tests.kit.views import View, assert_nothing_lost, view


def repaired(image: bytes, what: str = "all") -> tuple[bytes, CheckResult]:
    storage = MemoryStorage(image, "x.img")
    result = repair(storage, what)
    return storage.getvalue(), result


def judged(image: bytes) -> CheckResult:
    """What a check finds."""
    with open_disk(MemoryStorage(image), "qcow2", policy=NONE, follow=False) as device:
        return check(device)


def seen(image: bytes) -> View:
    return view(MemoryStorage(image))


def marks(image: bytes) -> int:
    """The bits of an image of version 3 that say how it was left: dirty, corrupt."""
    features: int = struct.unpack_from(">Q", image, INCOMPATIBLE)[0]
    return features & (DIRTY | CORRUPT)


def assert_repaired(image: bytes, after: bytes) -> None:
    """Nothing is wrong, no mark is left, nothing is lost, and nothing is left to be done."""
    found = judged(after)
    assert (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0), found.messages[:5]
    if after[7] >= 3:
        assert not marks(after)
    assert_nothing_lost(seen(image), seen(after))
    again, result = repaired(after)
    assert again == after
    assert (result.leaks_fixed, result.corruptions_fixed) == (0, 0)
