"""New images: created, converted, in the place of others."""

from __future__ import annotations

from typing import Any

from imgtool.chain import Reference
from imgtool.ops.bitmap import Change
from imgtool.ops.compact import compact_into
from imgtool.ops.convert import convert
from tests.campaigns.crash.bench import SECRETS, Bench, Disk
from tests.campaigns.crash.observe import Layout
from tests.campaigns.crash.workloads.common import age, geometry, use


def creating(bench: Bench) -> None:
    """New images, which are nothing until they are whole."""
    options, _, size = geometry(bench)
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


def compacting_into(bench: Bench) -> None:
    """An image compacted into a new file, in the place of another, or in its own."""
    chance = bench.random
    options, _, size = geometry(bench)
    place = chance.choice(("new", "other", "own"))
    source = bench.image("image" if place == "own" else "source", size, options)
    age(source)
    if options.get("compat") != "0.10" and chance.random() < 0.3:
        source.bitmap("bits", Change.ADD)
        use(source, 3, 0)
        source.close()
    if place == "other":
        other_options, _, other_size = geometry(bench)
        disk = bench.image("image", other_size, other_options)
        age(disk)
    elif place == "new":
        disk = bench.disk(Layout("image", "qcow2", standalone=True), size, bytes(size))
        bench.disks.remove(disk)
    else:
        disk = source
    bench.start()
    if place == "new":
        bench.disks.append(disk)
        disk.begin_absent()
    disk.command(
        f"compact into {place}",
        lambda: _compact_into(bench, source),
        content=bytes(source.content),
    )
    use(disk, 3)
    disk.close()


def _compact_into(bench: Bench, source: Disk) -> None:
    with bench.making():
        compact_into(source.reference, "/disks/image", opener=bench.opener)
