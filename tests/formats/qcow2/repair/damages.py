"""Sound images, and what is done to them before they are repaired."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

from tests.kit.corrupt import put
from tests.kit.qcow2 import COMPRESSED, COPIED, CORRUPT, DIRTY, ImageBuilder
from tests.kit.qcow2_gallery import GALLERY

Damage = Callable[[ImageBuilder, bytes], bytes]
_OFFSET = 0x00FF_FFFF_FFFF_FE00
#: Where fields of the header lie.
TABLE_OFFSET, TABLE_CLUSTERS = 48, 56
INCOMPATIBLE = 72


@functools.cache
def built(name: str) -> tuple[ImageBuilder, bytes]:
    builder = GALLERY[name]()
    return builder, builder.build()


def words(image: bytes, place: tuple[int, int]) -> list[int]:
    offset, length = place
    return list(struct.unpack_from(f">{length // 8}Q", image, offset))


def change_l2(change: Callable[[int], int], *, every: int = 1) -> Damage:
    """Change plain entries with a host cluster, in the active tables, every so many of them."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        step = 2 if builder.extended_l2 else 1
        seen = 0
        for name, place in builder.places.items():
            if not name.startswith("l2-"):
                continue
            table = words(image, place)
            for index in range(0, len(table), step):
                if table[index] & _OFFSET and not table[index] & COMPRESSED:
                    seen += 1
                    if seen % every == 0:
                        data = struct.pack(">Q", change(table[index]))
                        image = put(image, place[0] + 8 * index, data)
        assert seen
        return image

    return damage


def change_packed(change: Callable[[int], int]) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        step = 2 if builder.extended_l2 else 1
        for name, place in builder.places.items():
            if name.startswith("l2-"):
                table = words(image, place)
                for index in range(0, len(table), step):
                    if table[index] & COMPRESSED:
                        data = struct.pack(">Q", change(table[index]) & ((1 << 64) - 1))
                        image = put(image, place[0] + 8 * index, data)
        return image

    return damage


def change_l1(change: Callable[[int], int], prefix: str = "") -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        place = builder.places.get(f"{prefix}l1")
        if place is None:
            return image
        table = words(image, place)
        return put(image, place[0], struct.pack(">Q", change(table[0])))

    return damage


def change_subclusters(change: Callable[[int], int]) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        if not builder.extended_l2:
            return image
        for name, place in builder.places.items():
            if name.startswith("l2-"):
                table = words(image, place)
                for index in range(0, len(table), 2):
                    if table[index]:
                        data = struct.pack(">Q", change(table[index + 1]))
                        image = put(image, place[0] + 8 * index + 8, data)
        return image

    return damage


def fill(name: str, byte: int) -> Damage:
    """Overwrite a structure, or the first so many bytes of it."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        offset, length = builder.places[name]
        return put(image, offset, bytes([byte]) * length)

    return damage


def header(offset: int, format: str, value: int) -> Damage:
    return lambda builder, image: put(image, offset, struct.pack(format, value))


def mark(bits: int) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        if builder.version < 3:
            return image
        found = struct.unpack_from(">Q", image, INCOMPATIBLE)[0]
        return put(image, INCOMPATIBLE, struct.pack(">Q", found | bits))

    return damage


def cut(part: float) -> Damage:
    return lambda builder, image: image[: int(len(image) * part)]


def past_end(clusters: int) -> Damage:
    """Point entries behind the end of the file, so many clusters from it."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        end = -(-len(image) // builder.cluster_size) + clusters
        target = end * builder.cluster_size
        return change_l2(lambda entry: entry & ~_OFFSET | target, every=3)(builder, image)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda builder, image: functools.reduce(
        lambda image, damage: damage(builder, image), damages, image
    )


def to_place(name: str) -> Damage:
    """Let an entry name the cluster of a structure."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        offset = builder.places[name][0]
        return change_l2(lambda entry: entry & ~_OFFSET | offset, every=4)(builder, image)

    return damage


LOST = both(fill("refcount-block-0", 0), mark(DIRTY))

DAMAGES: dict[str, Damage] = {
    "none": lambda builder, image: image,
    "dirty": mark(DIRTY),
    "corrupt": mark(CORRUPT),
    "both-marks": mark(DIRTY | CORRUPT),
    "leaks": fill("refcount-block-0", 0xFF),
    "refcounts-junk": fill("refcount-block-0", 0x5A),
    "refcounts-lost": LOST,
    "table-lost": fill("refcount-table", 0),
    "table-junk": fill("refcount-table", 0x5A),
    "table-none": header(TABLE_CLUSTERS, ">I", 0),
    "table-unaligned": header(TABLE_OFFSET, ">Q", 0x101),
    "table-far": header(TABLE_OFFSET, ">Q", 1 << 50),
    "table-very-far": header(TABLE_OFFSET, ">Q", 1 << 60),
    "table-too-large": header(TABLE_CLUSTERS, ">I", 1 << 31),
    "table-at-header": header(TABLE_OFFSET, ">Q", 0),
    "copied-flipped": change_l2(lambda entry: entry ^ COPIED),
    "copied-flipped-l1": change_l1(lambda entry: entry ^ COPIED),
    "past-end": past_end(0),
    "past-end-by-one": past_end(1),
    "past-end-far": past_end(1 << 20),
    "past-end-and-lost": both(past_end(0), LOST),
    "unaligned": change_l2(lambda entry: entry + 512, every=3),
    "reserved": change_l2(lambda entry: entry | 1 << 57 | 1 << 60),
    "entry-to-l1": to_place("l1"),
    "entry-to-l2": to_place("l2-0"),
    "entry-to-block": to_place("refcount-block-0"),
    "entry-to-table": to_place("refcount-table"),
    "packed-copied": change_packed(lambda entry: entry | COPIED),
    "packed-past-end": change_packed(lambda entry: entry + (1 << 30)),
    "packed-longer": change_packed(lambda entry: entry | 7 << 55),
    "subclusters-all": change_subclusters(lambda bitmap: (1 << 64) - 1),
    "l1-past-end": change_l1(lambda entry: 1 << 40),
    "l1-unaligned": change_l1(lambda entry: entry | 0x200),
    "l1-reserved": change_l1(lambda entry: entry | 0x5),
    "l1-header": change_l1(lambda entry: COPIED),
    "l1-junk": change_l1(lambda entry: 0x1234_5678_9ABC_DEF0),
    "l1-of-snapshot": change_l1(lambda entry: entry | 1 << 45, "0:"),
    "cut-a-little": cut(0.95),
    "cut-half": cut(0.5),
    "cut-most": cut(0.2),
    "much": both(
        past_end(0), change_l2(lambda entry: entry ^ COPIED, every=2), fill("refcount-table", 1)
    ),
}  # fmt: skip
