"""Commands that change an image: snapshots, bitmaps, resize, amend, compact."""

from __future__ import annotations

import contextlib

from imgtool.errors import ImageError
from imgtool.ops.amend import amend
from imgtool.ops.bitmap import Change
from imgtool.ops.compact import compact
from tests.campaigns.crash.bench import Bench, Disk
from tests.campaigns.crash.workloads.common import (
    age,
    aged_and_shareable,
    base_image,
    geometry,
    resized,
    snapshot,
    snapshot_before,
    use,
    version_of,
)
from tests.kit.recording import SECTOR


def snapshots(bench: Bench) -> None:
    """Snapshots taken, applied and deleted, with writes between."""
    disk, _ = aged_and_shareable(bench)
    held: dict[str, bytes] = {}
    if bench.random.random() < 0.7:
        snapshot_before(disk, "old", held)
        use(disk, 4, 0)
    bench.start()
    for number in range(4):
        kind = bench.random.choice(("create", "create", "apply", "delete"))
        if kind == "create" or not held:
            held[f"s{number}"] = bytes(disk.content)
            snapshot(disk, "create", f"s{number}")
        elif kind == "apply":
            name = bench.random.choice(sorted(held))
            snapshot(disk, "apply", name, held[name])
        else:
            name = bench.random.choice(sorted(held))
            del held[name]
            snapshot(disk, "delete", name)
        use(disk, bench.random.randrange(4))
    disk.close()


def bitmaps(bench: Bench) -> None:
    """Persistent bitmaps: added, followed, cleared, merged, disabled, removed."""
    options, _, size = geometry(bench, compat="1.1")
    disk = bench.image("image", size, options)
    age(disk)
    bench.start()
    disk.bitmap("first", Change.ADD, granularity=bench.random.choice((512, 4096)))
    use(disk, 4)
    disk.close()
    disk.bitmap("second", Change.ADD)
    use(disk, 3)
    disk.close()
    for change in bench.random.sample((Change.CLEAR, Change.DISABLE, Change.MERGE), 2):
        if change is Change.MERGE:
            disk.bitmap("first", change, "second")
        else:
            disk.bitmap("second", change)
        use(disk, 2)
        disk.close()
    if bench.random.random() < 0.5:
        resized(disk, size + 8192)
    use(disk, 1)
    disk.close()
    for name in ("first", "second"):
        disk.bitmap(name, Change.REMOVE)


def resizing(bench: Bench) -> None:
    """Disks that grow and shrink, with snapshots and bitmaps, preallocated or not."""
    options, _, size = geometry(bench)
    disk = bench.image("image", size, options)
    age(disk)
    if version_of(disk) >= 3 and bench.random.random() < 0.3:
        disk.bitmap("bits", Change.ADD)
    bench.start()
    for _ in range(3):
        factor = bench.random.choice((0.3, 0.7, 0.9, 1.2, 2.0, 5.0))
        wanted = max(SECTOR, int(disk.size * factor) // SECTOR * SECTOR)
        grows = wanted > disk.size and bench.random.random() < 0.4
        resized(disk, wanted, bench.random.choice(("metadata", "full")) if grows else "off")
        use(disk, 3)
    disk.close()


def amending(bench: Bench) -> None:
    """Every option that can be changed afterwards."""
    options, _, size = geometry(bench)
    options.pop("extended_l2", None)
    options.pop("compression_type", None)
    if bench.random.random() < 0.5:
        base = base_image(bench, size)
        disk = bench.image("image", size, options, backing=base)
    else:
        disk = bench.image("image", size, options)
    age(disk)
    bench.start()
    for _ in range(4):
        _amend(disk)
        use(disk, 2)
    disk.close()


def _amend(disk: Disk) -> None:
    chance = disk.bench.random
    version = version_of(disk)
    bits = 1 << int.from_bytes(disk.bench.files["image"].getvalue()[96:100], "big")
    choices: list[dict[str, object]] = [{"size": disk.size + 4096}]
    if version < 3:
        choices += [{"compat": "1.1"}] * 3
    else:
        choices += [{"lazy_refcounts": chance.random() < 0.5}]
        choices += [{"refcount_bits": 1 << chance.randrange(7)}] * 2
        if bits == 16:
            choices += [{"compat": "0.10"}] * 3
    chosen = chance.choice(choices)
    content = bytes(disk.content)
    if "size" in chosen:
        content = content + bytes(4096)
    disk.command(
        f"amend {chosen}",
        lambda: _amend_if_possible(disk, chosen),
        content=content,
        tracking=True,
    )


def _amend_if_possible(disk: Disk, options: dict[str, object]) -> None:
    # Refcounts that are too large for the width asked for are refused, and nothing has changed.
    with contextlib.suppress(ImageError):
        amend(disk.reference, options, opener=disk.bench.opener)


def compacting(bench: Bench) -> None:
    """Zeros and lost clusters given back in place, with snapshots or bitmaps in the image."""
    disk, unit = aged_and_shareable(bench)
    for _ in range(4):
        start = bench.random.randrange(disk.size // unit + 1) * unit % disk.size
        length = min(bench.random.choice((1, 4, 20)) * unit, disk.size - start)
        disk.write(start, length, bytes(length))
    if bench.random.random() < 0.4:
        snapshot_before(disk, "old", {})
        use(disk, 4, 0)
    bench.start()
    disk.command("compact", lambda: compact(disk.reference, opener=bench.opener))
    use(disk, 4)
    disk.zero(0, disk.size // 2)
    disk.close()
    disk.command("compact", lambda: compact(disk.reference, opener=bench.opener))
