"""Inspecting bytes as a file and as a stream, which must come to the same."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from imgtool.inspection import Inspection, Severity
from imgtool.ops.inspect import Inspector, inspect
from imgtool.storage.memory import MemoryStorage
from tests.kit import foreign
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_gallery import GALLERY, encrypted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

NAME = "<image>"


class CountingStorage(MemoryStorage):
    """Remembers what was read of it: ``(offset, length)``."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, NAME)
        self.reads: list[tuple[int, int]] = []

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        self.reads.append((offset, memoryview(buffer).nbytes))
        return super().read_into(offset, buffer)


def as_stream(image: bytes, cut: int, **options: Any) -> Inspection:
    """Inspect ``image`` as a stream that comes in pieces of ``cut`` bytes."""
    inspector = Inspector(filename=NAME, **options)
    view = memoryview(image)
    for start in range(0, len(image), cut):
        inspector.feed(view[start : start + cut])
    return inspector.finish()


def judge(image: bytes, *, cuts: Sequence[int] = (70_001,), **options: Any) -> Inspection:
    """Inspect ``image`` as a file, and as streams that are cut otherwise, which must agree.

    A stream may say that it can't tell, and then it is not safe; or that L2 tables had gone by, and
    then it does not know where their clusters lie.
    """
    found = inspect(MemoryStorage(image, NAME, read_only=True), **options)
    for cut in (max(1, len(image)), *cuts):
        streamed = as_stream(image, cut, **options)
        if any("behind" in item.reason for item in streamed.unchecked):
            assert not streamed.safe
        elif "l2-behind" in codes(streamed, Severity.WARNING):
            assert codes(found) - codes(streamed) <= {"data-outside"}
        else:
            assert streamed == found
    return found


def codes(found: Inspection, severity: Severity = Severity.UNSAFE) -> set[str]:
    """The codes of the problems of one severity."""
    return {problem.code for problem in found.problems if problem.severity is severity}


def qcow2(guest: bytes = foreign.GUEST, **options: Any) -> bytes:
    """A qcow2 image of 4 MiB with one cluster of data."""
    builder = ImageBuilder(foreign.SIZE, **options)
    builder.data(0, guest.ljust(builder.cluster_size, b"\0"))
    return builder.build()


def l2_table(image: bytes) -> int:
    """Where the first L2 table of a qcow2 image is."""
    l1 = int.from_bytes(image[40:48], "big")
    return int.from_bytes(image[l1 : l1 + 8], "big") & 0x00FFFFFFFFFFFE00


def luks1(**changes: int | bytes) -> bytes:
    """A LUKS 1 volume whose payload is 4 MiB."""
    values = {
        "version": 1, "cipher": b"aes", "mode": b"xts-plain64", "hash": b"sha256", "payload": 4096,
        "key": 64, "stripes": 4000, "iterations": 1000, "active": 0x00AC71F3, **changes,
    }  # fmt: skip
    header = struct.pack(
        ">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe",
        *(values[name] for name in ("version", "cipher", "mode", "hash", "payload", "key")),
        b"d" * 20, b"s" * 32, values["iterations"], b"ea0e1979-d4c6-43bc-86c1-30e84ffda137",
    )  # fmt: skip
    slot = struct.pack(
        ">II32sII", values["active"], values["iterations"], b"s" * 32, 8, values["stripes"]
    )
    free = struct.pack(">II32sII", 0xDEAD, 0, b"", 8, 4000)
    return (header + slot + free * 7).ljust((2 << 20) + foreign.SIZE, b"\0")


#: Sound images that name no other file, and the format of each.
SOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    **foreign.SAMPLES,
    "raw": ("raw", lambda: foreign.GUEST.ljust(foreign.SIZE, b"\0")),
    "luks": ("luks", luks1),
    "qcow2": ("qcow2", qcow2),
    "qcow2-encrypted": ("qcow2", lambda: encrypted().build()),
    **{
        f"qcow2-{name}": ("qcow2", lambda make=make: make().build())  # type: ignore[misc]
        for name, make in GALLERY.items()
        # Made to be odd, or to end far from where its mapping begins.
        if name not in ("2M", "unknown")
    },
}

#: What one image of every kind is that a test goes through.
FEW = [*sorted(name for name in SOUND if not name.startswith("qcow2-")), "qcow2-4k"]
