"""Damaging images on purpose: fields by name, cut-off ends, flipped bits. Everything is seeded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def fields(schema: Any, base: int = 0) -> dict[str, tuple[int, int]]:
    """Where the named fields of a construct ``Struct`` lie: ``name -> (offset, length)``."""
    found: dict[str, tuple[int, int]] = {}
    offset = base
    for part in schema.subcons:
        length = part.sizeof()
        if part.name:
            found[part.name] = (offset, length)
        offset += length
    return found


def read_field(image: bytes, schema: Any, name: str, base: int = 0) -> Any:
    """The value of one field of a structure that lies at ``base``."""
    offset, length = fields(schema, base)[name]
    part = next(part for part in schema.subcons if part.name == name)
    return part.parse(image[offset : offset + length])


def patch(image: bytes, schema: Any, base: int = 0, **values: Any) -> bytes:
    """Return the image with fields of the structure at ``base`` changed; bytes go in as is."""
    changed = bytearray(image)
    places = fields(schema, base)
    for name, value in values.items():
        offset, length = places[name]
        part = next(part for part in schema.subcons if part.name == name)
        data = value if isinstance(value, bytes) else part.build(value)
        assert len(data) == length, (name, data)
        changed[offset : offset + length] = data
    return bytes(changed)


def put(image: bytes, offset: int, data: bytes) -> bytes:
    """Return the image with ``data`` at ``offset``, longer if need be."""
    changed = bytearray(image.ljust(offset + len(data), b"\0"))
    changed[offset : offset + len(data)] = data
    return bytes(changed)


def truncations(size: int, boundaries: Iterable[int]) -> list[int]:
    """Lengths to cut a file off at: at every boundary, a byte and a sector around it."""
    found = {0, 1, 3, 4, size - 1}
    for boundary in boundaries:
        found |= {boundary + step for step in (-512, -8, -1, 0, 1, 7, 8, 511, 512)}
    return sorted(length for length in found if 0 <= length < size)


def flips(
    image: bytes, regions: Sequence[tuple[int, int]], *, seed: int, count: int
) -> Iterator[bytes]:
    """Yield ``count`` copies of the image with one to eight bits flipped inside ``regions``.

    Each region, ``(offset, length)``, is hit as often as any other, however small it is.
    """
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(image)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            offset, length = chance.choice(regions)
            changed[offset + chance.randrange(length)] ^= 1 << chance.randrange(8)
        yield bytes(changed)


def overwrites(
    image: bytes, regions: Sequence[tuple[int, int]], *, seed: int, count: int
) -> Iterator[bytes]:
    """Yield ``count`` copies of the image with integers inside ``regions`` replaced by bad ones."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(image)
        for _ in range(chance.choice((1, 1, 2))):
            offset, length = chance.choice(regions)
            width = chance.choice([width for width in (1, 2, 4, 8) if width <= length])
            place = offset + chance.randrange(length // width) * width
            top = (1 << 8 * width) - 1
            value = chance.choice(
                (0, 1, top, top >> 1, (top >> 1) + 1, top - 511, len(image), 1 << 9, 1 << 21,
                 chance.randrange(top + 1), chance.randrange(len(image) + 1))
            )  # fmt: skip
            changed[place : place + width] = (value & top).to_bytes(width, "big")
        yield bytes(changed)
