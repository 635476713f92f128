"""Reading leaves every file as it was, to the byte and to the time of its last change.

That goes for images that were not closed properly as well, which whoever writes would mend first;
and it works for users who could not change anything if they tried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import multiprocessing
import os
import shutil
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import imgtool
from imgtool.cli.main import run
from imgtool.errors import ImageError
from tests.kit import qcow2
from tests.kit.corrupt import put
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.qcow2_parts import bitmap_entry, change

MiB = 1 << 20
PASSWORD = "secret"
SECRET = f"secret,id=s,data={PASSWORD}"
NOBODY = 65534


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, tuple[int, ...]]:
    """What shows that a file was written to, or had its times set back."""
    return {
        path.name: (
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
        )
        for path in sorted(folder.iterdir())
        for status in [path.stat()]
    }


def with_bitmap(flags: int) -> bytes:
    """An image with a bitmap; its flags are 1 for one in use and 2 for one that follows writes."""
    builder = ImageBuilder(MiB, cluster_bits=12)
    builder.data(0)
    data = builder.place(b"\1".ljust(32, b"\0"), "bitmap-data")
    table = builder.place(data.to_bytes(8, "big"), "bitmap-table")
    entry = put(bitmap_entry(b"b", bits=12, table=table, entries=1), 12, flags.to_bytes(4, "big"))
    directory = builder.place(entry, "directory")
    packed = struct.pack(">IIQQ", 1, 0, len(entry), directory)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    builder.header["autoclear_features"] = qcow2.BITMAPS
    return builder.build()


def wrong_refcounts(dirty: bool) -> bytes:
    """An image whose refcounts are those of no cluster in use, as a crash may leave them."""
    builder = GALLERY["v3"]()
    image = builder.build()
    place, length = builder.places["refcount-block-0"]
    features = qcow2.DIRTY if dirty else 0
    lazy = qcow2.LAZY_REFCOUNTS if dirty else 0
    return change(
        put(image, place, bytes(length)), incompatible_features=features, compatible_features=lazy
    )


def make_images(folder: Path) -> None:
    """Write one image of each kind, those that writing would mend among them."""
    for name in ("v2", "v3", "512", "extended", "zstd", "unknown"):
        (folder / f"{name}.qcow2").write_bytes(GALLERY[name]().build())
    v3 = GALLERY["v3"]().build()
    dirty = change(v3, incompatible_features=1, compatible_features=1)
    (folder / "dirty.qcow2").write_bytes(dirty)
    (folder / "dirty-and-wrong.qcow2").write_bytes(wrong_refcounts(True))
    (folder / "wrong.qcow2").write_bytes(wrong_refcounts(False))
    (folder / "corrupt.qcow2").write_bytes(change(v3, incompatible_features=qcow2.CORRUPT))
    (folder / "both.qcow2").write_bytes(change(v3, incompatible_features=3))
    (folder / "cut-off.qcow2").write_bytes(v3[:-70_000])
    (folder / "bitmap.qcow2").write_bytes(with_bitmap(2))
    (folder / "bitmap-in-use.qcow2").write_bytes(with_bitmap(3))
    (folder / "plain.raw").write_bytes(os.urandom(100_000) + bytes(MiB))
    external = ImageBuilder(MiB, external=True, extensions=[(qcow2.DATA_FILE, b"data.raw")])
    external.data(3)
    (folder / "external.qcow2").write_bytes(external.build())
    (folder / "data.raw").write_bytes(bytes(external.data_file).ljust(MiB, b"\0"))
    middle = ImageBuilder(MiB, backing=b"plain.raw", backing_format=b"raw")
    middle.data(1)
    dirty_middle = change(middle.build(), incompatible_features=1, compatible_features=1)
    (folder / "middle.qcow2").write_bytes(dirty_middle)
    top = ImageBuilder(MiB, backing=b"middle.qcow2", backing_format=b"qcow2")
    top.data(2)
    (folder / "top.qcow2").write_bytes(top.build())
    quick = {"password": PASSWORD, "format": "luks", "iter_time": 10}
    imgtool.create(folder / "volume.luks", MiB, **quick)  # type: ignore[arg-type]
    imgtool.create(folder / "secret.qcow2", MiB, password=PASSWORD, **{"encrypt.iter-time": 10})
    locked = (folder / "secret.qcow2").read_bytes()
    (folder / "secret-dirty.qcow2").write_bytes(
        change(locked, incompatible_features=1, compatible_features=1)
    )


#: What is asked of every image: ``{}`` is its name, ``{out}`` a file elsewhere.
COMMANDS = [
    "info {}",
    "info -U --output json {}",
    "info --backing-chain {}",
    "check {}",
    "check -U --output json {}",
    "check -r all --dry-run {}",
    "map {}",
    "map -U --output json {}",
    "measure -O qcow2 {}",
    "compare {} {}",
    "compare -s {} {}",
    "convert -O raw {} {out}",
    "convert -c -O qcow2 {} {out}",
    "convert --salvage -q -T none -O raw {} {out}",
    "hash {}",
    "dd if={} of={out} bs=64k count=4",
    "bench -c 8 -d 2 -s 4k {}",
    "io -r -c read,0,64k {}",
    "snapshot -l {}",
    "bitmap --list {} b",
]


def imgtool_calls(path: Path) -> list[Callable[[], object]]:
    """The same through the library."""

    def read(**options: object) -> None:
        with imgtool.open(path, **options) as disk:  # type: ignore[arg-type]
            disk.read_at(0, min(disk.size, MiB))
            list(disk.extents())
            with disk.as_file() as file:
                file.read(1000)

    return [
        lambda: read(password=PASSWORD),
        lambda: read(password=PASSWORD, share=True, cache="directsync"),
        lambda: read(password=PASSWORD, cache="writethrough"),
        lambda: read(snapshot="first"),
        lambda: imgtool.info(path, backing_chain=True).to_dict(),
        lambda: imgtool.check(path),
        lambda: list(imgtool.map(path, password=PASSWORD)),
        lambda: imgtool.snapshots(path),
        lambda: list(imgtool.dirty_ranges(path, "b")),
        lambda: imgtool.hash(path, raw=True, password=PASSWORD),
    ]


def arguments(command: str, path: Path, out: Path) -> list[str]:
    parts = [part.format(path, out=out) for part in command.split(" ")]
    if parts[0] == "io":
        parts = [part.replace(",", " ") for part in parts]
    return parts


def calls(path: Path, out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    for command in COMMANDS:
        yield command, functools.partial(run, arguments(command, path, out))
    for number, call in enumerate(imgtool_calls(path)):
        yield f"call {number}", call


def read_everything(folder: Path, out: Path) -> tuple[int, list[str]]:
    """Do all that reads to every image; return how many went well, and what changed a file."""
    whole, before, changed, well = digests(folder), times(folder), [], 0
    for path in sorted(folder.iterdir()):
        for name, call in calls(path, out):
            printed = io.StringIO()
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
                contextlib.suppress(ImageError),
            ):
                well += not call()
            out.unlink(missing_ok=True)
            after = times(folder)
            if after != before or digest(path) != whole[path.name]:
                changed.append(f"{name} of {path.name}")
                before = after
    assert digests(folder) == whole or changed
    return well, changed


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach, which those of pytest are not."""
    root = Path(tempfile.mkdtemp(prefix="imgtool-read-only-"))
    root.chmod(0o755)
    (root / "images").mkdir()
    (root / "out").mkdir()
    make_images(root / "images")
    yield root
    shutil.rmtree(root)


def test_nothing_changes(folder: Path) -> None:
    well, changed = read_everything(folder / "images", folder / "out" / "out")
    assert changed == []
    assert well > 400


def test_nothing_needs_to_be_writable(folder: Path) -> None:
    """Neither the files nor the folder, for a user who is not the owner."""
    for path in (folder / "images").iterdir():
        path.chmod(0o444)
    (folder / "images").chmod(0o555)
    (folder / "out").chmod(0o777)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_as_nobody, args=(folder, sender))
    process.start()
    sender.close()
    answer = receiver.recv()
    process.join()
    assert isinstance(answer, tuple), answer
    well, changed = answer
    assert changed == []
    assert well > 400


def _as_nobody(folder: Path, sender: Connection) -> None:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        assert not os.access(folder / "images", os.W_OK)
        sender.send(read_everything(folder / "images", folder / "out" / "out"))
    except BaseException:
        sender.send(traceback.format_exc())
    finally:
        os._exit(0)
