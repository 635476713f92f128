"""What the tests of convert share: disks to convert, and a look at what came out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from imgtool.chain import Opener, Reference, Source
from imgtool.ops.convert import convert
from tests.kit import referee
from tests.kit.contract import Content, render
from tests.kit.disks import ANY, open_disk

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

NOISE = random.Random(77).randbytes(MiB)

OPENER = Opener(policy=ANY)


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that differ everywhere and that no compressor shrinks."""
    start = seed * 4099 % MiB
    doubled = NOISE[start:] + NOISE * (length // MiB + 1)
    return doubled[:length]


def disk(size: int, *pieces: tuple[int, bytes]) -> bytes:
    """A disk of ``size`` bytes with ``(offset, data)`` pieces in zeros."""
    content: Content = list(pieces)
    return render(content, size)


def write_raw(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A sparse raw file."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return path


def format_of(source: Source) -> str | None:
    """The format that goes with the suffix of a path."""
    return source.suffix.lstrip(".") if isinstance(source, Path) else None


def reference(source: Source, format: str | None = None, **options: object) -> Reference:
    """An image as a user describes it; the format of a path goes by its suffix."""
    return Reference(source, format or format_of(source), options)


def to(
    target: Source,
    *sources: Reference | Path,
    format: str | None = None,
    target_options: dict[str, object] | None = None,
    **arguments: Any,
) -> None:
    """Convert; the target's format goes by its suffix. No test leaves room on disk to chance."""
    described = [each if isinstance(each, Reference) else reference(each) for each in sources]
    wanted = reference(target, format, **(target_options or {}))
    assert wanted.format is not None
    arguments.setdefault("opener", OPENER)
    convert(described, wanted, format=wanted.format, **arguments)


def content_of(source: Source, format: str | None = None) -> bytes:
    """The whole disk as imgtool reads it."""
    with open_disk(source, format or format_of(source), policy=ANY) as device:
        return device.read_at(0, device.size)


def assert_sound(image: Path, content: bytes) -> None:
    """qemu-img finds neither errors nor leaks, and reads ``content``."""
    found = referee.check(image)
    assert found["exit"] == 0, found
    assert not found.get("leaks"), found
    assert referee.contents(image, "qcow2", image.parent) == content
