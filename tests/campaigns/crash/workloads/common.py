"""What workloads have in common: images of every geometry, and guests that use them."""

from __future__ import annotations

from typing import Any

from imgtool.ops.resize import resize
from imgtool.ops.snapshot import apply_snapshot, create_snapshot, delete_snapshot
from tests.campaigns.crash.bench import Bench, Disk
from tests.kit.recording import SECTOR


def geometry(bench: Bench, **fixed: Any) -> tuple[dict[str, Any], int, int]:
    """Options of an image, its cluster size, and a virtual size that it takes a while to fill."""
    chance = bench.random
    options: dict[str, Any] = {}
    bits = chance.choice((9, 9, 9, 9, 10, 10, 12, 12, 14, 16))
    if chance.random() < 0.2:
        options["compat"] = "0.10"
    else:
        options["refcount_bits"] = 1 << chance.randrange(7)
        options["lazy_refcounts"] = chance.random() < 0.3
        options["compression_type"] = chance.choice(("zlib", "zlib", "zstd"))
        if bits >= 14:
            options["extended_l2"] = chance.random() < 0.6
    options.update(fixed)
    bits = options.pop("bits", bits)
    if bits < 14:
        options.pop("extended_l2", None)
    if options.get("compat") == "0.10":
        for name in ("refcount_bits", "lazy_refcounts", "compression_type", "extended_l2"):
            options.pop(name, None)
    options["cluster_size"] = 1 << bits
    size = {9: 48 << 10, 10: 96 << 10, 12: 128 << 10, 14: 160 << 10}.get(bits, 4 << bits)
    return options, 1 << bits, size - chance.choice((0, 0, SECTOR, 5 * SECTOR))


def age(disk: Disk, operations: int = 12) -> None:
    """Use a disk for a while, so that free clusters and old tables hold what once was."""
    for _ in range(operations):
        step(disk)
    disk.zero(0, disk.size // 2, unmap=True)
    for _ in range(operations // 3):
        step(disk)
    disk.close()


def aged_and_shareable(bench: Bench) -> tuple[Disk, int]:
    """A disk that was used for a while and can be kept in snapshots, and its cluster size."""
    options, unit, size = geometry(bench)
    # Snapshots share host clusters, each with many compressed ones: refcounts must be wide enough.
    if options.get("refcount_bits", 16) < 8:
        options["refcount_bits"] = 8
    disk = bench.image("image", size, options)
    age(disk)
    return disk, unit


def step(disk: Disk) -> None:
    """One write of a guest, of whatever kind."""
    chance = disk.bench.random
    device = disk.device
    unit = max(SECTOR, device.limits.alignment)
    kind = chance.choice(
        ("write", "write", "write", "write", "zero", "unmap", "discard", "compressed", "part")
    )
    start = chance.randrange(disk.size // SECTOR) * SECTOR
    if chance.random() < 0.5:
        start -= start % unit
    length = min(chance.choice((SECTOR, unit, unit, 2 * unit, 5 * unit)), disk.size - start)
    if kind == "write":
        disk.write(start, length)
    elif kind == "part":
        offset = start + chance.randrange(100)
        disk.write(offset, min(chance.randrange(1, 900), disk.size - offset))
    elif kind == "compressed":
        if device.encoded_size:
            disk.write_compressed(start)
    elif kind == "discard":
        disk.discard(start, length)
    else:
        disk.zero(start, length, unmap=kind == "unmap")


def use(disk: Disk, operations: int, flushes: float = 0.3) -> None:
    """Let a guest work, flushing now and then."""
    for _ in range(operations):
        step(disk)
        if disk.bench.random.random() < flushes:
            disk.flush()


def base_image(bench: Bench, size: int, **fixed: Any) -> Disk:
    options, _, _ = geometry(bench, **fixed)
    disk = bench.image("base", size, options)
    for _ in range(6):
        step(disk)
    disk.write(0, size // 3)
    disk.close()
    return disk


def version_of(disk: Disk) -> int:
    return disk.bench.files[disk.layout.file].getvalue()[7]


def snapshot(disk: Disk, kind: str, name: str, content: bytes | None = None) -> None:
    run = {"create": create_snapshot, "apply": apply_snapshot, "delete": delete_snapshot}[kind]
    disk.command(
        f"snapshot {kind} {name}",
        lambda: run(disk.reference, name, opener=disk.bench.opener),
        content=content,
        flags_lag=version_of(disk) < 3,
    )


def snapshot_before(disk: Disk, name: str, held: dict[str, bytes]) -> None:
    disk.close()
    create_snapshot(disk.reference, name, opener=disk.bench.opener)
    held[name] = bytes(disk.content)


def resized(disk: Disk, size: int, preallocation: str = "off") -> None:
    content = bytes(disk.content[:size]).ljust(size, b"\0")
    disk.command(
        f"resize {size} {preallocation}",
        lambda: resize(
            disk.reference,
            size,
            shrink=True,
            preallocation=preallocation,
            opener=disk.bench.opener,
        ),
        content=content,
        tracking=True,
    )
