"""Guests at work, on disks of every kind."""

from __future__ import annotations

from typing import Any

from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.workloads.common import age, base_image, geometry, resized, snapshot, use
from tests.kit.recording import SECTOR


def guest(bench: Bench) -> None:
    """Guest writes of every kind, in images of every geometry."""
    options, _, size = geometry(bench)
    disk = bench.image("image", size, options)
    age(disk)
    bench.start()
    use(disk, 10)
    disk.flush()
    use(disk, 3, 0)
    disk.close()


def filling(bench: Bench) -> None:
    """A disk that grows until refcount blocks and the refcount table have to be new."""
    options, unit, _ = geometry(bench, bits=9, compat="1.1")
    options["refcount_bits"] = bench.random.choice((16, 32, 64, 64))
    size = bench.random.choice((64 << 10, 256 << 10))
    disk = bench.image("image", size, options)
    age(disk, 6)
    bench.start()
    for _ in range(4):
        start = bench.random.randrange(size // unit) * unit
        disk.write(start, min(bench.random.choice((4, 16, 48)) * unit, size - start))
        if bench.random.random() < 0.5:
            disk.flush()
    # Snapshots take what has not been counted yet: the table has to grow.
    for number in range(3):
        snapshot(disk, "create", f"s{number}")
        disk.write(0, 24 << 10)
    disk.close()


def large_clusters(bench: Bench) -> None:
    """Clusters of up to 2 MiB, with and without subclusters."""
    bits = bench.random.choice((16, 17, 17, 18, 21))
    extended = bench.random.random() < 0.5
    options: dict[str, Any] = {"cluster_size": 1 << bits, "extended_l2": extended}
    disk = bench.image("image", 3 << bits, options)
    disk.write(SECTOR * 3, 2048)
    disk.close()
    bench.start()
    for _ in range(4):
        start = bench.random.randrange(disk.size // SECTOR) * SECTOR
        length = min(bench.random.choice((512, 4096, 1 << bits >> 5)), disk.size - start)
        if bench.random.random() < 0.75:
            disk.write(start, length)
        else:
            disk.zero(start, length, unmap=bench.random.random() < 0.5)
        if bench.random.random() < 0.4:
            disk.flush()
    disk.close()


def compressed(bench: Bench) -> None:
    """Compressed clusters, packed, overwritten, compressed again."""
    options, unit, size = geometry(bench)
    disk = bench.image("image", size, options)
    for offset in range(0, disk.size // 2, unit):
        disk.write_compressed(offset)
    age(disk, 4)
    bench.start()
    for _ in range(10):
        start = bench.random.randrange(disk.size // unit + 1) * unit % disk.size
        if bench.random.random() < 0.6:
            disk.write_compressed(start)
        else:
            disk.write(start, min(unit, disk.size - start))
        if bench.random.random() < 0.3:
            disk.flush()
    disk.close()


def external(bench: Bench) -> None:
    """Images whose data lie in a file of their own, raw or not."""
    options, _, size = geometry(bench, compat="1.1", data_file="data")
    options["data_file_raw"] = bench.random.random() < 0.5
    disk = bench.image("image", size, options)
    age(disk)
    bench.start()
    use(disk, 8)
    disk.close()
    if not options["data_file_raw"] or bench.random.random() < 0.5:
        resized(disk, disk.size + 4096)
        use(disk, 2)
        disk.close()


def overlay(bench: Bench) -> None:
    """Writes, zeros and discards over a backing image."""
    options, _, size = geometry(bench)
    base = base_image(bench, size + bench.random.choice((0, -4096, 4096)))
    disk = bench.image("image", size, options, backing=base)
    age(disk, 6)
    bench.start()
    use(disk, 10)
    disk.close()


def encrypted(bench: Bench) -> None:
    """Encrypted images: LUKS inside qcow2, and LUKS volumes."""
    size = 96 << 10
    if bench.random.random() < 0.6:
        options: dict[str, Any] = {
            "cluster_size": bench.random.choice((512, 4096, 65536)),
            "encrypt.format": "luks",
            "encrypt.iter_time": 1,
            "encrypt.key_secret": "key",
            "encrypt.cipher_alg": "aes-128",
        }
        disk = bench.image("image", size, options)
    else:
        options = {"iter_time": 1, "cipher_alg": "aes-128", "key_secret": "key"}
        disk = bench.image("image", size, options, format="luks")
    disk.write(0, size)
    age(disk, 4)
    bench.start()
    use(disk, 6)
    disk.close()
    if disk.layout.format == "qcow2":
        resized(disk, size + 8192)
        use(disk, 2)
        disk.close()


def raw(bench: Bench) -> None:
    """Raw disks: written to and resized."""
    size = 64 << 10
    disk = bench.image("image", size, format="raw")
    bench.plain = True
    disk.write(0, size)
    bench.start()
    use(disk, 8)
    disk.close()
    resized(disk, size + 16384)
    use(disk, 3)
    resized(disk, size // 2)
