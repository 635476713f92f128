"""What is done to images while the power may go: every operation that writes.

Each workload makes its images (in files whose free clusters hold old data), calls
:meth:`Bench.start`, and goes on with what is recorded. All choices come from the bench's seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from imgtool.chain import Reference
from imgtool.errors import ImageError
from imgtool.ops.amend import amend
from imgtool.ops.bitmap import Change
from imgtool.ops.check import check
from imgtool.ops.commit import commit
from imgtool.ops.compact import compact
from imgtool.ops.convert import convert
from imgtool.ops.rebase import rebase
from imgtool.ops.resize import resize
from imgtool.ops.snapshot import apply_snapshot, create_snapshot, delete_snapshot
from tests.campaigns.crash.bench import SECRETS, Bench, Disk
from tests.campaigns.crash.observe import Layout
from tests.kit.recording import SECTOR

Workload = Callable[[Bench], None]


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
        _snapshot(disk, "create", f"s{number}")
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
        _resize(disk, disk.size + 4096)
        use(disk, 2)
        disk.close()


def overlay(bench: Bench) -> None:
    """Writes, zeros and discards over a backing image."""
    options, _, size = geometry(bench)
    base = _base(bench, size + bench.random.choice((0, -4096, 4096)))
    disk = bench.image("image", size, options, backing=base)
    age(disk, 6)
    bench.start()
    use(disk, 10)
    disk.close()


def _base(bench: Bench, size: int, **fixed: Any) -> Disk:
    options, _, _ = geometry(bench, **fixed)
    disk = bench.image("base", size, options)
    for _ in range(6):
        step(disk)
    disk.write(0, size // 3)
    disk.close()
    return disk


# Commands


def _snapshot(disk: Disk, kind: str, name: str, content: bytes | None = None) -> None:
    run = {"create": create_snapshot, "apply": apply_snapshot, "delete": delete_snapshot}[kind]
    disk.command(
        f"snapshot {kind} {name}",
        lambda: run(disk.reference, name, opener=disk.bench.opener),
        content=content,
        flags_lag=_version(disk) < 3,
    )


def _version(disk: Disk) -> int:
    return disk.bench.files[disk.layout.file].getvalue()[7]


def snapshots(bench: Bench) -> None:
    """Snapshots taken, applied and deleted, with writes between."""
    options, _, size = geometry(bench)
    if options.get("refcount_bits", 16) < 4:
        options["refcount_bits"] = 4
    disk = bench.image("image", size, options)
    age(disk)
    held: dict[str, bytes] = {}
    if bench.random.random() < 0.7:
        _snapshot_before(disk, "old", held)
        use(disk, 4, 0)
    bench.start()
    for number in range(4):
        kind = bench.random.choice(("create", "create", "apply", "delete"))
        if kind == "create" or not held:
            held[f"s{number}"] = bytes(disk.content)
            _snapshot(disk, "create", f"s{number}")
        elif kind == "apply":
            name = bench.random.choice(sorted(held))
            _snapshot(disk, "apply", name, held[name])
        else:
            name = bench.random.choice(sorted(held))
            del held[name]
            _snapshot(disk, "delete", name)
        use(disk, bench.random.randrange(4))
    disk.close()


def _snapshot_before(disk: Disk, name: str, held: dict[str, bytes]) -> None:
    disk.close()
    create_snapshot(disk.reference, name, opener=disk.bench.opener)
    held[name] = bytes(disk.content)


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
        _resize(disk, size + 8192)
    use(disk, 1)
    disk.close()
    for name in ("first", "second"):
        disk.bitmap(name, Change.REMOVE)


def _resize(disk: Disk, size: int, preallocation: str = "off") -> None:
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


def resizing(bench: Bench) -> None:
    """Disks that grow and shrink, with snapshots and bitmaps, preallocated or not."""
    options, _, size = geometry(bench)
    disk = bench.image("image", size, options)
    age(disk)
    if _version(disk) >= 3 and bench.random.random() < 0.3:
        disk.bitmap("bits", Change.ADD)
    bench.start()
    for _ in range(3):
        factor = bench.random.choice((0.3, 0.7, 0.9, 1.2, 2.0, 5.0))
        wanted = max(SECTOR, int(disk.size * factor) // SECTOR * SECTOR)
        grows = wanted > disk.size and bench.random.random() < 0.4
        _resize(disk, wanted, bench.random.choice(("metadata", "full")) if grows else "off")
        use(disk, 3)
    disk.close()


def amending(bench: Bench) -> None:
    """Every option that can be changed afterwards."""
    options, _, size = geometry(bench)
    options.pop("extended_l2", None)
    options.pop("compression_type", None)
    if bench.random.random() < 0.5:
        base = _base(bench, size)
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
    version = _version(disk)
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
    options, unit, size = geometry(bench)
    if options.get("refcount_bits", 16) < 4:
        options["refcount_bits"] = 4
    disk = bench.image("image", size, options)
    age(disk)
    for _ in range(4):
        start = bench.random.randrange(disk.size // unit + 1) * unit % disk.size
        length = min(bench.random.choice((1, 4, 20)) * unit, disk.size - start)
        disk.write(start, length, bytes(length))
    if bench.random.random() < 0.4:
        _snapshot_before(disk, "old", {})
        use(disk, 4, 0)
    bench.start()
    disk.command("compact", lambda: compact(disk.reference, opener=bench.opener))
    use(disk, 4)
    disk.zero(0, disk.size // 2)
    disk.close()
    disk.command("compact", lambda: compact(disk.reference, opener=bench.opener))


def repairing(bench: Bench) -> None:
    """Repair of images with leaks, errors, or refcounts that have been lost."""
    options, unit, size = geometry(bench)
    disk = bench.image("image", size, options)
    age(disk)
    if options.get("refcount_bits", 16) >= 4 and bench.random.random() < 0.4:
        _snapshot_before(disk, "old", {})
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


def committing(bench: Bench) -> None:
    """An overlay put into its backing image, which may have to grow, and then emptied."""
    options, _, size = geometry(bench)
    base = _base(bench, max(4096, size + bench.random.choice((0, 0, -8192))))
    top = bench.image("image", size, options, backing=base)
    use(top, 8, 0)
    drop = bench.random.random() < 0.3
    bench.start()
    shown = bytes(top.content)
    wanted = shown.ljust(max(len(shown), base.size), b"\0")
    if base.size > len(shown):
        wanted = shown + bytes(base.content[len(shown) :])
    # The base grows as a whole, and then changes sector after sector.
    if len(wanted) > base.size:
        base.history.begin(base._segment())
        base.content[:] = bytes(base.content).ljust(len(wanted), b"\0")
        base.history.change(0, bytes(base.content))
        with bench.opener.reference(base.reference) as device:
            grown = device
            shape = base.history.segments[-2].shape
            assert shape is not None
            base.history.last.shape = shape._replace(size=len(wanted))
            del grown
    base.bulk(
        "commit",
        lambda: commit(top.reference, drop=drop, opener=bench.opener),
        wanted,
    )
    top.history.promise(len(bench.log))
    use(top, 3)
    top.close()


def rebasing(bench: Bench) -> None:
    """An overlay that moves to another backing image, to none, or to a name."""
    options, _, size = geometry(bench)
    base = _base(bench, size)
    other_options, _, _ = geometry(bench)
    other = bench.image("a-name-of-some-length-for-another-backing-image", size, other_options)
    use(other, 5, 0)
    other.write(0, size // 4)
    other.close()
    top = bench.image("image", size, options, backing=base)
    use(top, 5, 0)
    # It is judged over the backing image that it names, whichever that is.
    bench.disks = [base, other, top]
    bench.start()
    target = bench.random.choice((other.layout, None))
    _rebase(bench, top, target)
    use(top, 3)
    top.close()
    if target is None:
        return
    _rebase(bench, top, base.layout)


def _rebase(bench: Bench, top: Disk, below: Layout | None) -> None:
    old = top.layout
    new = Layout(old.file, old.format, backing=below, standalone=below is None)
    reference = old.reference(dict(bench.files))
    top.layout = Layout(old.file, old.format, follows_names=True)
    top.command(
        f"rebase {None if below is None else below.file}",
        lambda: rebase(
            reference,
            None if below is None else below.file,
            None if below is None else below.format,
            opener=bench.opener,
        ),
    )
    del new


def creating(bench: Bench) -> None:
    """New images, which are nothing until they are whole."""
    options, unit, size = geometry(bench)
    if bench.random.random() < 0.3:
        options["preallocation"] = bench.random.choice(("metadata", "full"))
    bench.file("image")
    disk = bench.disk(Layout("image", "qcow2", standalone=True), size, bytes(size))
    bench.start_files = {"image": b""}
    disk.begin_absent()
    disk.command(
        "create",
        lambda: bench.make("image", size, options),
        content=bytes(size),
    )
    use(disk, 3)
    disk.close()
    del unit


def converting(bench: Bench) -> None:
    """An image written anew from another, compressed or not, bitmaps and all."""
    options, _, size = geometry(bench, compat="1.1")
    source = bench.image("source", size, options)
    age(source)
    source.bitmap("bits", Change.ADD)
    use(source, 4, 0)
    source.close()
    bench.file("image")
    disk = bench.disk(Layout("image", "qcow2", standalone=True), size, bytes(size))
    bench.disks = [disk]
    bench.log.changes.clear()
    bench.start_files = {name: file.getvalue() for name, file in bench.files.items()}
    disk.begin_absent()
    made, _, _ = geometry(bench, compat="1.1")
    if bench.random.random() < 0.2:
        made["preallocation"] = "metadata"
    disk.command(
        f"convert {made}",
        lambda: convert(
            [source.reference],
            disk.reference,
            format="qcow2",
            options=made,
            compress=bench.random.random() < 0.4,
            bitmaps=True,
            opener=bench.opener,
            target_cache="writeback",
        ),
        content=bytes(source.content),
    )
    use(disk, 3)
    disk.close()


def overwriting(bench: Bench) -> None:
    """A new image in the place of an old one, in a file or on a block device."""
    chance = bench.random
    options, _, size = geometry(bench)
    kind = chance.choice(("qcow2", "qcow2", "qcow2", "raw", "luks"))
    if kind != "qcow2":
        options = {"key_secret": "key", "iter_time": 1} if kind == "luks" else {}
        bench.plain = True
    source_options, _, _ = geometry(bench)
    source = bench.image("source", size, source_options)
    age(source)
    disk = bench.image("image", size, options, format=kind)
    disk.write(0, size)
    if kind == "qcow2":
        age(disk)
    disk.close()
    on_device = kind == "qcow2" and chance.random() < 0.4
    if on_device:
        bench.files["image"].truncate(max(1 << 19, bench.files["image"].size()))
        bench.files["image"].fixed = True
        bench.plain = True
    bench.start()
    bench.disks = [disk]
    disk.begin_absent()
    if kind == "qcow2":
        options, _, _ = geometry(bench)
    if on_device or (kind == "qcow2" and chance.random() < 0.3):
        disk.command(
            "create over what is there",
            lambda: bench.make("image", size, options),
            content=bytes(size),
        )
    else:
        disk.command(
            "convert over what is there",
            lambda: _convert_over(bench, source, kind, options),
            content=bytes(source.content),
        )
    use(disk, 2)
    disk.close()


def _convert_over(bench: Bench, source: Disk, format: str, options: dict[str, Any]) -> None:
    with bench.making():
        convert(
            [source.reference],
            Reference("image", format),
            format=format,
            options=options,
            check_space=False,
            opener=bench.opener,
            target_secrets=SECRETS,
            target_cache="writeback",
        )


def converting_into(bench: Bench) -> None:
    """An existing image overwritten by another (``convert -n``)."""
    options, _, size = geometry(bench)
    source = bench.image("source", size, options)
    age(source)
    made, _, _ = geometry(bench)
    disk = bench.image("image", size, made)
    age(disk)
    bench.start()
    bench.disks = [disk]
    disk.bulk(
        "convert -n",
        lambda: convert(
            [source.reference],
            disk.reference,
            format="qcow2",
            create=False,
            opener=bench.opener,
            target_cache="writeback",
        ),
        bytes(source.content),
    )
    use(disk, 3)
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
        _resize(disk, size + 8192)
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
    _resize(disk, size + 16384)
    use(disk, 3)
    _resize(disk, size // 2)


WORKLOADS: dict[str, Workload] = {
    "guest": guest,
    "filling": filling,
    "large-clusters": large_clusters,
    "compressed": compressed,
    "external": external,
    "overlay": overlay,
    "snapshots": snapshots,
    "bitmaps": bitmaps,
    "resize": resizing,
    "amend": amending,
    "compact": compacting,
    "repair": repairing,
    "commit": committing,
    "rebase": rebasing,
    "create": creating,
    "convert": converting,
    "convert-into": converting_into,
    "overwrite": overwriting,
    "encrypted": encrypted,
    "raw": raw,
}

#: Those whose images are large, or whose keys take long to derive.
SLOW = frozenset({"large-clusters", "encrypted"})
