"""Images for the tests of their headers."""

from __future__ import annotations

from typing import Any

from imgtool.formats.qcow2.header import Header, read_header
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import put
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import change

KiB, MiB = 1 << 10, 1 << 20


def header_of(image: bytes) -> Header:
    return read_header(MemoryStorage(image, "disk.qcow2"))


def built(size: int = MiB, **options: Any) -> bytes:
    builder = ImageBuilder(size, **options)
    builder.data(0)
    return builder.build()


def with_name(name: bytes, offset: int, **options: Any) -> bytes:
    image = put(built(**options), offset, name)
    return change(image, backing_file_offset=offset, backing_file_size=len(name))
