"""Damage for repair to mend: in refcounts, in tables, and in what lies upon what."""

from __future__ import annotations

from typing import NamedTuple

from tests.campaigns.crash.bench import Bench
from tests.kit.recording import Recorder


class Damage(NamedTuple):
    """What kind of repair an image needs, and whether it says so itself.

    With ``tables`` entries of its tables are damaged; part of what is ``unreadable`` cannot be read
    before it is repaired.
    """

    repair: str
    marked: bool = False
    tables: bool = False
    unreadable: bool = False


def damage(bench: Bench, unit: int) -> Damage:
    """Damage the image."""
    storage = bench.files["image"]
    table = _number(storage, 48, 8)
    blocks = [
        offset for place in range(0, unit, 8) if (offset := _number(storage, table + place, 8))
    ]
    chance = bench.random
    kind = chance.choice(("leaks", "lost", "table", "dirty", "dirty", "entries"))
    in_l2 = kind != "leaks" and chance.random() < 0.7
    if in_l2 and not storage.read_at(79, 1)[0] & 16:
        _damage_entries(bench, unit)
    in_l1 = kind != "leaks" and chance.random() < 0.5
    unreadable = in_l1 and _damage_l1(bench, unit)
    if kind == "leaks":
        # Clusters behind the end that nobody refers to.
        order = _number(storage, 96, 4) if storage.read_at(7, 1)[0] > 2 else 4
        if order >= 3:
            entries = unit * 8 >> order
            last = storage.size() // unit
            width = 1 << order >> 3
            if last // entries < len(blocks):
                place = blocks[last // entries] + last % entries * width
                # What lies there may be in use, and its subclusters not be written yet.
                if not _number(storage, place, width):
                    storage.write_at(place, (1).to_bytes(width, "big"))
        storage.truncate((storage.size() // unit + 2) * unit)
        return Damage("leaks")
    marked = kind == "dirty" and storage.read_at(7, 1)[0] > 2
    if kind == "lost":
        storage.write_at(chance.choice(blocks), bytes(unit))
    elif kind == "table":
        storage.write_at(table + 8 * chance.randrange(len(blocks)), bytes(8))
    elif marked:
        if chance.random() < 0.5:
            storage.write_at(table, bytes(8))
        storage.write_at(79, bytes((storage.read_at(79, 1)[0] | 1,)))
        storage.write_at(blocks[0] + unit // 2, bytes(unit // 2))
    return Damage("all", marked, in_l1 or in_l2, unreadable)


def _damage_entries(bench: Bench, unit: int) -> None:
    """Damage entries of L2 tables; what lies behind the file's end reads as zeros."""
    storage, chance = bench.files["image"], bench.random
    l1 = _number(storage, 40, 8)
    behind = -(-storage.size() // unit) * unit
    narrow = _refcounts_of_one_bit(storage.getvalue())
    for place in range(l1, l1 + 8 * _number(storage, 36, 4), 8):
        table = _number(storage, place, 8) & ~(3 << 62)
        if not table:
            continue
        crosses, last = chance.random() < 0.4, 0
        if chance.random() < 0.5:
            # The flag that says that the table is the disk's alone.
            storage.write_at(place, table.to_bytes(8, "big"))
        for position in range(table, table + unit, 8):
            entry = _number(storage, position, 8)
            if entry >> 62 == 2 and chance.random() < 0.4:
                # A flag that lies, a bit that means nothing, a cluster behind the file's end, one
                # that another entry has as well where refcounts have no more than a bit.
                kind = chance.choice(("flag", "bit", "behind", "twice" if narrow else "behind"))
                if crosses:
                    # Data that lie in the table's own cluster: it has to move.
                    entry, crosses = table | 1 << 63, False
                    # Until then nothing can be done about entries that name what is behind the
                    # file's end, and the file has to grow: what it grows by must be zeros.
                    bench.garbage = False
                elif kind == "behind":
                    entry, behind = behind | 1 << 63, behind + unit
                elif kind == "twice":
                    entry = last
                else:
                    entry ^= 1 << 63 if kind == "flag" else 1 << 57
                last = entry
                storage.write_at(position, entry.to_bytes(8, "big"))


def _damage_l1(bench: Bench, unit: int) -> bool:
    """Damage the L1 table of the disk, or that of its snapshot, or what names that.

    Returns whether what it maps cannot be read any more.
    """
    storage, chance = bench.files["image"], bench.random
    tables = [(_number(storage, 40, 8), _number(storage, 36, 4))]
    snapshot = _number(storage, 64, 8) if _number(storage, 60, 4) else 0
    if snapshot:
        tables.append((_number(storage, snapshot, 8), _number(storage, snapshot + 8, 4)))
        if chance.random() < 0.4:
            _shorten(storage, snapshot)
    table, size = chance.choice(tables)
    if _refcounts_of_one_bit(storage.getvalue()) and chance.random() < 0.7:
        # An L2 table that is named more often than can be counted.
        storage.write_at(table + 8 * chance.randrange(size), storage.read_at(table, 8))
        return False
    if chance.random() < 0.6:
        # An L2 table behind the file's end becomes none.
        behind = -(-storage.size() // unit) * unit
        storage.write_at(table + 8 * chance.randrange(size), behind.to_bytes(8, "big"))
        return True
    for place in range(tables[0][0], tables[0][0] + 8 * tables[0][1], 8):
        l2 = _number(storage, place, 8) & ~(3 << 62)
        if l2 and l2 < storage.size() and _number(storage, l2, 8) >> 62 == 2:
            # Data that lie where the L1 table is: it has to move, and the file to grow.
            storage.write_at(l2, (table | 1 << 63).to_bytes(8, "big"))
            bench.garbage = False
            break
    return False


def _refcounts_of_one_bit(image: bytes) -> bool:
    """Whether the refcounts of an image cannot count that anything is shared."""
    return image[7] > 2 and not image[99]


def _shorten(storage: Recorder, entry: int) -> None:
    """Let an entry of the snapshot table lack its extra data: the table has to be written anew."""
    extra = _number(storage, entry + 36, 4)
    names = _number(storage, entry + 12, 2) + _number(storage, entry + 14, 2)
    named = storage.read_at(entry + 40 + extra, names)
    storage.write_at(entry + 36, bytes(4) + named + bytes(extra))


def _number(storage: Recorder, offset: int, length: int) -> int:
    return int.from_bytes(storage.read_at(offset, length), "big")
