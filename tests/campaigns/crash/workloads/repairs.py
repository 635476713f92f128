"""Repair of images that are damaged."""

from __future__ import annotations

from dataclasses import replace

from imgtool.ops.check import check
from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.workloads.common import age, geometry, snapshot_before, use


def repairing(bench: Bench) -> None:
    """Repair of images with leaks, errors, or refcounts that have been lost."""
    options, unit, size = geometry(bench)
    disk = bench.image("image", size, options)
    age(disk)
    if options.get("refcount_bits", 16) >= 4 and bench.random.random() < 0.4:
        snapshot_before(disk, "old", {})
        use(disk, 3, 0)
        disk.close()
    what, marked = _damage(bench, unit)
    with replace(bench.opener, writable=False).reference(disk.reference) as device:
        disk.content[:] = device.read_at(0, device.size)
    bench.start()
    disk.command(
        f"check -r {what}",
        lambda: check(disk.reference, opener=bench.opener, repair=what),
        damaged=not marked,
    )
    use(disk, 3)
    disk.close()


def _damage(bench: Bench, unit: int) -> tuple[str, bool]:
    """Damage the image; return what kind of repair it needs, and whether it says so itself."""
    storage = bench.files["image"]
    table = int.from_bytes(storage.read_at(48, 8), "big")
    blocks = [
        offset
        for place in range(0, unit, 8)
        if (offset := int.from_bytes(storage.read_at(table + place, 8), "big"))
    ]
    chance = bench.random
    kind = chance.choice(("leaks", "lost", "table", "dirty", "dirty", "entries"))
    if kind != "leaks" and chance.random() < 0.7 and not storage.read_at(79, 1)[0] & 16:
        _damage_entries(bench, unit)
    if kind == "leaks":
        # Clusters behind the end that nobody refers to.
        order = int.from_bytes(storage.read_at(96, 4), "big") if storage.read_at(7, 1)[0] > 2 else 4
        if order >= 3:
            entries = unit * 8 >> order
            last = storage.size() // unit
            width = 1 << order >> 3
            if last // entries < len(blocks):
                place = blocks[last // entries] + last % entries * width
                storage.write_at(place, (1).to_bytes(width, "big"))
        storage.truncate((storage.size() // unit + 2) * unit)
        return "leaks", False
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
    return "all", marked


def _damage_entries(bench: Bench, unit: int) -> None:
    """Damage entries of L2 tables; what lies behind the file's end reads as zeros."""
    storage, chance = bench.files["image"], bench.random
    l1 = int.from_bytes(storage.read_at(40, 8), "big")
    behind = -(-storage.size() // unit) * unit - unit
    for place in range(l1, l1 + 8 * int.from_bytes(storage.read_at(36, 4), "big"), 8):
        table = int.from_bytes(storage.read_at(place, 8), "big") & ~(3 << 62)
        if not table:
            continue
        crossed = False
        if chance.random() < 0.5:
            # The flag that says that the table is the disk's alone.
            storage.write_at(place, table.to_bytes(8, "big"))
        for position in range(table, table + unit, 8):
            entry = int.from_bytes(storage.read_at(position, 8), "big")
            if entry >> 62 == 2 and chance.random() < 0.4:
                # A flag that lies, a bit that means nothing, a cluster behind the file's end.
                behind += unit
                entry = chance.choice((entry & ~(1 << 63), entry | 1 << 57, behind | 1 << 63))
                if not crossed and chance.random() < 0.2:
                    # Data that lie in the table's own cluster: it has to move.
                    entry, crossed = table | 1 << 63, True
                    # Until then nothing can be done about entries that name what is behind the
                    # file's end, and the file has to grow: what it grows by must be zeros.
                    bench.garbage = False
                storage.write_at(position, entry.to_bytes(8, "big"))
