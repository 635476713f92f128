"""The damaged images of the corpus: undamaged ones with bytes changed by hand.

Offsets are those of the specification (docs/interop/qcow2); nothing of imgtool is used, so that
its idea of the format is not tested against itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from tests.compat.recipes import MIXED, PACKED, Recipe, bitmap, cut, io, snapshot
from tests.compat.workshop import Workshop

COPIED = 1 << 63
COMPRESSED = 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00


class Layout:
    """Where the tables of a qcow2 image lie, and a way to change their entries in place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cluster_size = 1 << self.u32(20)
        self.l1 = self.u64(40)
        self.refcount_table = self.u64(48)
        self.refcount_bits = 16 if self.u32(4) == 2 else 1 << self.u32(96)
        self.snapshots = self.u64(64)
        self.entry_size = 16 if self.u32(4) > 2 and self.u64(72) & 16 else 8

    def read(self, offset: int, length: int) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, offset: int, data: bytes) -> None:
        with open(self._path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def u32(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 4), "big")

    def u64(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "big")

    def put32(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack(">I", value))

    def put64(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack(">Q", value))

    def clusters(self) -> int:
        """Clusters in the file, a partial one included."""
        return -(-self._path.stat().st_size // self.cluster_size)

    def l2(self, index: int = 0) -> int:
        """The L2 table that L1 entry ``index`` names."""
        return self.u64(self.l1 + 8 * index) & _OFFSET

    def entry(self, guest: int) -> int:
        """Where the L2 entry for the guest offset ``guest`` lies."""
        per_table = self.cluster_size // self.entry_size
        cluster = guest // self.cluster_size
        return self.l2(cluster // per_table) + cluster % per_table * self.entry_size

    def host(self, guest: int) -> int:
        """The host offset that ``guest`` is mapped to."""
        return self.u64(self.entry(guest)) & _OFFSET

    def block(self, index: int = 0) -> int:
        """The refcount block that entry ``index`` of the refcount table names."""
        return self.u64(self.refcount_table + 8 * index) & ~511

    def set_refcount(self, cluster: int, value: int) -> None:
        """Set what the first refcount block says of a host cluster; 8 bits and wider."""
        width = self.refcount_bits // 8
        self.write(self.block() + cluster * width, value.to_bytes(width, "big"))

    def extension(self, wanted: int) -> int:
        """Where the data of a header extension lies."""
        offset = self.u32(100)
        while self.u32(offset) != wanted:
            assert self.u32(offset)
            offset += 8 + -(-self.u32(offset + 4) // 8) * 8
        return offset + 8


Damage = Callable[[Layout], None]


def _entry(guest: int, change: Callable[[Layout, int], int]) -> Damage:
    """Change the L2 entry for ``guest``."""

    def damage(image: Layout) -> None:
        where = image.entry(guest)
        image.put64(where, change(image, image.u64(where)))

    return damage


def _l1(change: Callable[[Layout, int], int], index: int = 0) -> Damage:
    def damage(image: Layout) -> None:
        where = image.l1 + 8 * index
        image.put64(where, change(image, image.u64(where)))

    return damage


def _table(change: Callable[[Layout, int], int], index: int = 0) -> Damage:
    """Change an entry of the refcount table."""

    def damage(image: Layout) -> None:
        where = image.refcount_table + 8 * index
        image.put64(where, change(image, image.u64(where)))

    return damage


def _refcount(guest: int, value: int) -> Damage:
    return lambda image: image.set_refcount(image.host(guest) // image.cluster_size, value)


def _all(*damages: Damage) -> Damage:
    def damage(image: Layout) -> None:
        for each in damages:
            each(image)

    return damage


def _leak_last(image: Layout) -> None:
    """Drop the mapping of the file's last cluster, whose refcount stays."""
    for guest in range(0, 4 << 20, image.cluster_size):
        if image.host(guest) // image.cluster_size == image.clusters() - 1:
            image.put64(image.entry(guest), 0)
            return
    raise AssertionError("no data cluster lies at the end")


def _snapshot_field(offset: int, format: str, value: int) -> Damage:
    return lambda image: image.write(image.snapshots + offset, struct.pack(format, value))


def _bitmap_directory(image: Layout) -> int:
    return image.u64(image.extension(0x23852875) + 16)


def _bitmap_field(offset: int, format: str, value: int) -> Damage:
    return lambda image: image.write(_bitmap_directory(image) + offset, struct.pack(format, value))


def _bitmap_entry(change: Callable[[Layout, int], int]) -> Damage:
    def damage(image: Layout) -> None:
        where = image.u64(_bitmap_directory(image))
        image.put64(where, change(image, image.u64(where)))

    return damage


def _damaged(name: str, damage: Damage, base: Recipe | None = None) -> Recipe:
    base = base or Recipe("mixed", writes=MIXED)

    def step(workshop: Workshop, path: Path) -> None:
        damage(Layout(path))

    return Recipe(
        f"damaged-{name}",
        size=base.size,
        options=base.options,
        writes=base.writes,
        steps=(*base.steps, step),
        backing=base.backing,
    )


def _refcounts() -> list[Recipe]:
    past = 1 << 30
    return [
        _damaged("leak", _leak_last),
        _damaged("leaks", lambda image: image.write(image.block() + 2, b"\0\7" * 12)),
        _damaged(
            "leak-refcount-8", _leak_last, Recipe("r", options="refcount_bits=8", writes=MIXED)
        ),
        _damaged(
            "leak-refcount-1", _leak_last, Recipe("r", options="refcount_bits=1", writes=MIXED)
        ),
        _damaged("refcount-zero", _refcount(0, 0)),
        _damaged("refcount-two", _refcount(0, 2)),
        _damaged(
            "refcount-64-huge",
            _refcount(0, (1 << 64) - 1),
            Recipe("r", options="refcount_bits=64", writes=MIXED),
        ),
        _damaged(
            "refcount-two-shared",
            _all(_refcount(64 << 10, 2), _refcount(0, 3)),
            Recipe("r", writes=MIXED, steps=(snapshot("one"),)),
        ),
        _damaged("refcounts-lost", lambda image: image.write(image.block(), bytes(4096))),
        _damaged("metadata-uncounted", lambda image: image.write(image.block(), bytes(10))),
        _damaged("table-empty", _table(lambda image, entry: 0)),
        _damaged("table-reserved", _table(lambda image, entry: entry | 0x10)),
        _damaged("table-unaligned", _table(lambda image, entry: entry + 512)),
        _damaged("table-outside", _table(lambda image, entry: past, index=5)),
        _damaged("table-twice", _table(lambda image, entry: image.block(), index=1)),
        _damaged("table-to-header", _table(lambda image, entry: image.l1, index=1)),
        _damaged(
            "overflow",
            _entry(0, lambda image, entry: image.u64(image.entry(64 << 10))),
            Recipe("r", options="refcount_bits=1", writes=MIXED),
        ),
        _damaged(
            "refcounts-512",
            lambda image: image.write(image.block(1), bytes(256)),
            Recipe("r", options="cluster_size=512", writes=MIXED),
        ),
    ]


def _mappings() -> list[Recipe]:
    def host(cluster: int, flags: int = COPIED) -> Callable[[Layout, int], int]:
        return lambda image, entry: cluster * image.cluster_size | flags

    small = Recipe("small", options="cluster_size=4k", writes=MIXED)
    v2 = Recipe("v2", options="compat=0.10", writes=MIXED)
    return [
        _damaged("copied-lost", _entry(0, lambda image, entry: entry & ~COPIED)),
        _damaged("copied-lost-v2", _entry(0, lambda image, entry: entry & ~COPIED), v2),
        _damaged("copied-lost-l1", _l1(lambda image, entry: entry & ~COPIED)),
        _damaged(
            "copied-shared",
            _all(
                _entry(0, lambda image, entry: entry | COPIED),
                _l1(lambda image, entry: entry | COPIED),
            ),
            Recipe("r", writes=MIXED, steps=(snapshot("one"),)),
        ),
        _damaged("entry-past-end", _entry(0, host(1000))),
        _damaged(
            "entry-just-past-end",
            _entry(0, lambda image, entry: host(image.clusters())(image, entry)),
        ),
        _damaged("entry-far-past-end", _entry(0, host(1 << 38))),
        _damaged("entry-past-end-small", _entry(0, host(100_000)), small),
        _damaged("entry-unaligned", _entry(0, lambda image, entry: entry + 512)),
        _damaged("entry-zero-unaligned", _entry(0, lambda image, entry: entry + 512 | 1)),
        _damaged("entry-reserved", _entry(0, lambda image, entry: entry | 0x10)),
        _damaged("entry-reserved-high", _entry(0, lambda image, entry: entry | 1 << 57)),
        _damaged("entry-reserved-v2", _entry(0, lambda image, entry: entry | 1), v2),
        _damaged("entry-only-flags", _entry(2 << 20, lambda image, entry: COPIED)),
        _damaged("entry-twice", _entry(0, lambda image, entry: image.u64(image.entry(64 << 10)))),
        _damaged("entry-to-header", _entry(0, host(0))),
        _damaged("entry-to-l1", _entry(0, lambda image, entry: image.l1 | COPIED)),
        _damaged("entry-to-l2", _entry(0, lambda image, entry: image.l2() | COPIED)),
        _damaged("entry-to-block", _entry(0, lambda image, entry: image.block() | COPIED)),
        _damaged("entry-to-table", _entry(0, lambda image, entry: image.refcount_table | COPIED)),
        _damaged(
            "compressed-copied",
            _entry(0, lambda image, entry: entry | COPIED),
            Recipe("r", writes=PACKED),
        ),
        _damaged(
            "compressed-past-end",
            _entry(0, lambda image, entry: entry + (1 << 30)),
            Recipe("r", writes=PACKED),
        ),
        _damaged(
            "compressed-to-header",
            _entry(0, lambda image, entry: COMPRESSED | 512),
            Recipe("r", writes=PACKED),
        ),
        _damaged(
            "compressed-data-file",
            _entry(0, lambda image, entry: entry | COMPRESSED),
            Recipe("r", options="data_file=image.data", writes=MIXED),
        ),
        _damaged(
            "data-file-unaligned",
            _entry(0, lambda image, entry: entry + 512),
            Recipe("r", options="data_file=image.data", writes=MIXED),
        ),
        _damaged(
            "data-file-past-end",
            _entry(0, host(4096)),
            Recipe("r", options="data_file=image.data", writes=MIXED),
        ),
        _damaged("l1-past-end", _l1(lambda image, entry: 1 << 30 | COPIED)),
        _damaged("l1-unaligned", _l1(lambda image, entry: entry + 512)),
        _damaged("l1-reserved", _l1(lambda image, entry: entry | 0x3)),
        _damaged("l1-to-header", _l1(lambda image, entry: COPIED)),
        _damaged("l1-to-l1", _l1(lambda image, entry: image.l1 | COPIED)),
        _damaged("l1-to-data", _l1(lambda image, entry: image.host(0) | COPIED)),
        _damaged(
            "l1-twice",
            _l1(lambda image, entry: image.u64(image.l1), index=1),
            Recipe("r", options="cluster_size=512", writes=MIXED),
        ),
        _damaged(
            "everything",
            _all(
                _leak_last,
                _refcount(64 << 10, 0),
                _refcount(256 << 10, 7),
                _entry(0, host(1000)),
                _entry(2 << 20, host(5, 0x10)),
            ),
        ),
    ]


def _extended() -> list[Recipe]:
    base = Recipe("extended", options="extended_l2=on", writes=MIXED)
    packed = Recipe("extended-packed", options="extended_l2=on", writes=PACKED)

    def bits(guest: int, value: int) -> Damage:
        return lambda image: image.put64(image.entry(guest) + 8, value)

    return [
        _damaged("subclusters-both", bits(0, (1 << 64) - 1), base),
        _damaged("subclusters-without-cluster", bits(2 << 20, 1), base),
        _damaged("subclusters-zero-without-cluster", bits(2 << 20, 1 << 32), base),
        _damaged("subclusters-compressed", bits(0, 1), packed),
        _damaged("subclusters-unaligned", _entry(0, lambda image, entry: entry + 512), base),
        _damaged("subclusters-zero-flag", _entry(0, lambda image, entry: entry | 1), base),
        _damaged("subclusters-copied-lost", _entry(0, lambda image, entry: entry & ~COPIED), base),
    ]


def _rest() -> list[Recipe]:
    shot = Recipe("shot", writes=MIXED, steps=(snapshot("one"),))
    mapped = Recipe("mapped", writes=MIXED, steps=(bitmap("b0"),))
    dirty = Recipe("dirty", steps=(*mapped.steps, io("write -P 1 0 2M")))
    return [
        _damaged(
            "cut-in-data", lambda image: None, Recipe("r", writes=MIXED, steps=(cut(-200_000),))
        ),
        _damaged("cut-in-l2", lambda image: None, Recipe("r", writes=MIXED, steps=(cut(270_000),))),
        _damaged(
            "cut-before-l2", lambda image: None, Recipe("r", writes=MIXED, steps=(cut(262_144),))
        ),
        _damaged("dirty-bit", lambda image: image.put64(72, image.u64(72) | 1)),
        _damaged("corrupt-bit", lambda image: image.put64(72, image.u64(72) | 2)),
        _damaged(
            "snapshot-l1-unaligned",
            lambda image: image.put64(image.snapshots, image.u64(image.snapshots) + 512),
            shot,
        ),
        _damaged("snapshot-l1-past-end", _snapshot_field(0, ">Q", 1 << 30), shot),
        _damaged("snapshot-l1-large", _snapshot_field(8, ">I", 5 << 20), shot),
        _damaged("snapshot-l1-to-header", _snapshot_field(0, ">Q", 0), shot),
        _damaged("snapshot-extra-large", _snapshot_field(36, ">I", 2000), shot),
        _damaged("snapshot-extra-none", _snapshot_field(36, ">I", 0), shot),
        _damaged("snapshot-count", lambda image: image.put32(60, 2), shot),
        _damaged("bitmap-in-use", _bitmap_field(12, ">I", 1), mapped),
        _damaged("bitmap-flags", _bitmap_field(12, ">I", 0x100), mapped),
        _damaged("bitmap-type", _bitmap_field(16, ">B", 7), mapped),
        _damaged("bitmap-granularity", _bitmap_field(17, ">B", 60), mapped),
        _damaged("bitmap-table-unaligned", _bitmap_field(0, ">Q", 0x50200), mapped),
        _damaged("bitmap-table-past-end", _bitmap_field(0, ">Q", 1 << 30), mapped),
        _damaged("bitmap-data-past-end", _bitmap_entry(lambda image, entry: 1 << 30), dirty),
        _damaged("bitmap-data-reserved", _bitmap_entry(lambda image, entry: entry | 2), dirty),
        _damaged("bitmap-data-unaligned", _bitmap_entry(lambda image, entry: entry + 512), dirty),
        _damaged("bitmap-data-shared", _bitmap_entry(lambda image, entry: image.host(0)), dirty),
        _damaged("bitmap-autoclear", lambda image: image.put64(88, 0), dirty),
        _damaged("bitmap-count", lambda image: image.put32(image.extension(0x23852875), 2), mapped),
        _damaged(
            "bitmap-directory-past-end",
            lambda image: image.put64(image.extension(0x23852875) + 16, 1 << 30),
            mapped,
        ),
    ]


def recipes() -> list[Recipe]:
    """Every damaged image of the corpus."""
    return [*_refcounts(), *_mappings(), *_extended(), *_rest()]
