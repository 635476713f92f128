"""Repair of images that are damaged."""

from __future__ import annotations

from typing import Any

from imgtool.ops.check import check
from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.workloads.common import age, geometry, snapshot_before, use
from tests.campaigns.crash.workloads.damage import damage


def repairing(bench: Bench) -> None:
    """Repair of images with leaks, errors, or refcounts that have been lost."""
    # Small clusters have several L2 tables; refcounts of one bit cannot count what is shared.
    fixed: dict[str, Any] = {"bits": 9} if bench.random.random() < 0.5 else {}
    if bench.random.random() < 0.25:
        fixed |= {"compat": "1.1", "refcount_bits": 1}
    options, unit, size = geometry(bench, **fixed)
    disk = bench.image("image", size, options)
    age(disk)
    if options.get("refcount_bits", 16) >= 4 and bench.random.random() < 0.4:
        snapshot_before(disk, "old", {})
        use(disk, 3, 0)
        disk.close()
    done = damage(bench, unit)
    disk.unreadable, disk.beyond_qemu = done.unreadable, done.tables
    disk.content[:], _ = disk.look()
    bench.start()
    disk.command(
        f"check -r {done.repair}",
        lambda: check(disk.reference, opener=bench.opener, repair=done.repair),
        damaged=done.unreadable or not done.marked,
    )
    use(disk, 3)
    disk.close()
