"""A bench on which workloads run: files that are recorded, and disks whose histories are known."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from imgtool.chain import OpenPolicy, Reference, Trust
from imgtool.device import BlockDevice
from imgtool.formats.qcow2.repair import repair
from imgtool.ops import compact
from imgtool.ops.bitmap import Action, Change, change_bitmap
from imgtool.ops.create import create
from imgtool.secrets import Secret, Secrets
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.storage.memory import MemoryStorage
from tests.campaigns.crash.history import History, Segment, Shape
from tests.campaigns.crash.observe import Layout, shape_of
from tests.kit.crash_states import Choice
from tests.kit.recording import SECTOR, Directory, Log, Recorder, RecordingOpener

SECRETS = Secrets({"key": Secret(b"secret")})


class Bench:
    """The files and disks of one workload. What happens before :meth:`start` is not recorded."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.log = Log()
        self.files: dict[str, Recorder] = {}
        self.disks: list[Disk] = []
        self.start_files: dict[str, bytes] = {}
        self.notes: list[str] = []
        #: A raw file says nothing of itself: its length is the disk's, what is in it the contents.
        self.plain = False
        #: Whether what was never written may hold garbage.
        self.garbage = True
        self._stamp = 0
        self._made: set[str] = set()

    @property
    def opener(self) -> RecordingOpener:
        """Opens the files by name, for writing."""
        return RecordingOpener(
            policy=OpenPolicy(Trust.ANY), files=self.files, writable=True, secrets=SECRETS
        )

    def file(self, name: str, data: bytes = b"") -> Recorder:
        """A file, empty at first."""
        return self.files.setdefault(name, Recorder(self.log, name, data))

    def image(
        self,
        file: str,
        size: int,
        options: Mapping[str, object] | None = None,
        *,
        format: str = "qcow2",
        backing: Disk | None = None,
    ) -> Disk:
        """Create an image, and keep it as a disk whose history is judged."""
        made = dict(options or {})
        data_file = None
        if "data_file" in made:
            data_file = str(made["data_file"])
            self.file(data_file)
        self.make(file, size, made, format=format, backing=backing)
        layout = Layout(
            file,
            format,
            backing=None if backing is None else backing.layout,
            data_file=data_file,
            options={name: "key" for name in made if name.endswith("key_secret")},
            standalone=backing is None and format == "qcow2",
        )
        return self.disk(layout, size, bytes(size) if backing is None else backing.seen(size))

    def make(
        self,
        file: str,
        size: int,
        options: Mapping[str, object],
        *,
        format: str = "qcow2",
        backing: Disk | None = None,
    ) -> None:
        """Create an image in a file of the bench."""
        if backing is not None:
            options = {**options, "backing_file": backing.layout.file}
            options["backing_fmt"] = backing.layout.format
        with self.making():
            create(file, size, format=format, options=options, unsafe=True, opener=self.opener)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Let new files be made on the bench, and those that are there be emptied or replaced."""

        def make(path: str, **how: object) -> Recorder:
            name = path.rsplit("/", 1)[-1]
            made = self.file(name)
            made.created = name not in self._made
            self._made.add(name)
            made.truncate(0)
            return made

        directory = Directory(self.log, self.files)
        tokens = (f"{number:08x}" for number in itertools.count(len(self.log)))
        with (
            mock.patch.object(FileStorage, "create", make),
            mock.patch.object(os, "replace", directory.replace),
            mock.patch.object(compact, "_sync_directory", directory.flush),
            mock.patch.object(secrets, "token_hex", side_effect=tokens),
        ):
            yield

    def disk(self, layout: Layout, size: int, content: bytes) -> Disk:
        """Keep an image that is there as a disk whose history is judged."""
        disk = Disk(self, layout, content)
        self.disks.append(disk)
        return disk

    def stamp(self, length: int) -> bytes:
        """Data that nobody else ever writes; sectors differ, and each is easily compressed."""
        self._stamp += 1
        sectors = -(-length // SECTOR)
        words = np.empty((sectors, SECTOR // 8), np.uint64)
        words[:] = (np.arange(sectors, dtype=np.uint64) + 1)[:, None]
        words |= np.uint64(self._stamp << 32)
        return words.tobytes()[:length]

    def start(self) -> None:
        """Take all that there is for durable, and begin to record."""
        for disk in self.disks:
            disk.close()
        self.log.changes.clear()
        self.start_files = {name: file.getvalue() for name, file in self.files.items()}
        for disk in self.disks:
            disk.reset()

    def possible(self, choice: Choice) -> Choice:
        """A choice of a state, without what these files rule out."""
        if self.plain:
            choice = choice._replace(length="as written")
        if self.plain or not self.garbage:
            choice = choice._replace(garbage=False)
        return choice

    def note(self, text: str) -> None:
        """Remember what is being done, for whoever has to find out what went wrong."""
        self.notes.append(f"{len(self.log):4} {text}")


class Disk:
    """One disk of a bench, with what it should hold."""

    def __init__(
        self, bench: Bench, layout: Layout, content: bytes, *, flags_lag: bool = False
    ) -> None:
        self.bench, self.layout = bench, layout
        #: The flags of its tables may lag behind its refcounts all along.
        self.flags_lag = flags_lag
        #: Parts of it cannot be read before it is repaired.
        self.unreadable = False
        #: QEMU's repair would leave some of its damage.
        self.beyond_qemu = False
        self.content = bytearray(content)
        self.history = History()
        self.baselines: dict[str, bytes] = {}
        self._device: BlockDevice | None = None

    @property
    def reference(self) -> Reference:
        return self.layout.reference(dict(self.bench.files))

    @property
    def size(self) -> int:
        return len(self.content)

    def seen(self, size: int) -> bytes:
        """What an overlay of this size shows of it."""
        return bytes(self.content[:size]).ljust(size, b"\0")

    def reset(self) -> None:
        """Take what there is for durable; everything before is forgotten."""
        self.history = History()
        self.history.begin(self._segment())
        self.history.change(0, bytes(self.content))
        self._observe()
        self.history.promise(0)

    def begin_absent(self) -> None:
        """There is no image yet, or none any more."""
        nothing_before = not self.history.segments
        self.history.begin(Segment(None, [(len(self.bench.log), b"")]))
        if nothing_before:
            self.history.promise(0)

    def _segment(self) -> Segment:
        return Segment(None, [], baselines=dict(self.baselines), flags_lag=self.flags_lag)

    def look(self) -> tuple[bytes, Shape]:
        """What it holds and is, or what repair would make of it if it is unreadable."""
        files: dict[str, Storage] = dict(self.bench.files)
        if self.unreadable:
            mended = MemoryStorage(self.bench.files[self.layout.file].getvalue())
            repair(mended, "all")
            files[self.layout.file] = mended
        opener = replace(self.bench.opener, writable=False)
        reference = self.layout.reference(files)
        with opener.reference(reference) as device:
            return device.read_at(0, device.size), shape_of(device, reference, opener)

    def _observe(self) -> None:
        found, self.history.last.shape = self.look()
        assert found == bytes(self.content), f"{self.layout.file} does not hold what was written"

    # Guest writes

    @property
    def device(self) -> BlockDevice:
        """The disk, open for writing."""
        return self._device or self.open()

    def open(self) -> BlockDevice:
        """Open the disk for writing."""
        self._device = self.bench.opener.reference(self.reference)
        return self._device

    def _put(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        if self.history.segments:
            self.history.last.tracking = True
            self.history.change(len(self.bench.log), bytes(self.content))

    def announce(self, offset: int, length: int, data: bytes | None = None) -> bytes:
        """Return something new that is about to be written."""
        self.bench.note(f"{self.layout.file}: write {offset:#x}+{length:#x}")
        data = self.bench.stamp(length) if data is None else data
        self._put(offset, data)
        return data

    def write(self, offset: int, length: int, data: bytes | None = None) -> None:
        """Write something new."""
        self.device.write_at(offset, self.announce(offset, length, data))

    def zero(self, offset: int, length: int, *, unmap: bool = False) -> None:
        self.bench.note(f"{self.layout.file}: zero {offset:#x}+{length:#x} unmap={unmap}")
        self._put(offset, bytes(length))
        self.device.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Discard whole clusters, which then read as zeros."""
        self.bench.note(f"{self.layout.file}: discard {offset:#x}+{length:#x}")
        device = self.device
        unit = device.limits.alignment
        start, end = -(-offset // unit) * unit, offset + length
        end = end if end == self.size else end // unit * unit
        # In a LUKS volume it is a hint, which is not taken.
        if start < end and self.layout.format != "luks":
            self._put(start, bytes(end - start))
        device.discard(offset, length)

    def write_compressed(self, offset: int) -> None:
        """Write one cluster compressed."""
        device = self.device
        unit = device.encoded_size
        offset = offset // unit * unit
        self.bench.note(f"{self.layout.file}: compressed {offset:#x}")
        data = self.bench.stamp(min(unit, self.size - offset))
        self._put(offset, data)
        (encoded,) = device.encode(data.ljust(unit, b"\0"))
        if encoded is None:
            device.write_at(offset, data)
        else:
            device.write_encoded(offset, [encoded])

    def flush(self) -> None:
        self.bench.note(f"{self.layout.file}: flush")
        self.device.flush()
        if self.history.segments:
            self.history.promise(len(self.bench.log))

    def close(self) -> None:
        """Close the disk; bitmaps that followed writes are stored then."""
        if self._device is None:
            return
        self.bench.note(f"{self.layout.file}: close")
        device, self._device = self._device, None
        recorded = bool(self.history.segments)
        if recorded and device.stored_bitmaps:
            self.history.begin(self._segment())
            self.history.change(len(self.bench.log), bytes(self.content))
        device.close()
        if recorded:
            self._observe()
            self.history.promise(len(self.bench.log))

    # Commands

    def command(
        self,
        name: str,
        run: Callable[[], Any],
        *,
        content: bytes | None = None,
        tracking: bool = False,
        flags_lag: bool = False,
        damaged: bool = False,
    ) -> None:
        """Run a command that changes the image from one whole to another.

        Before it is done the image may want repair (``damaged``); from then on flags in its tables
        may lag behind its refcounts (``flags_lag``).
        """
        self.close()
        self.bench.note(f"{self.layout.file}: {name}")
        before = self.history.last if self.history.segments else Segment(None, [])
        before.tracking |= tracking
        before.flags_lag |= flags_lag
        before.damaged |= damaged
        before.unreadable |= self.unreadable
        before.beyond_qemu |= self.beyond_qemu
        if content is not None:
            # What is cut off and grows back is new: no bitmap knows what was there (as in QEMU).
            kept = self.baselines.items()
            self.baselines = {bits: before[: len(content)] for bits, before in kept}
            self.content[:] = content
        self.history.begin(self._segment())
        self.history.last.tracking = tracking
        self.history.last.flags_lag |= flags_lag
        self.history.change(len(self.bench.log), bytes(self.content))
        run()
        self.unreadable = self.beyond_qemu = False
        self._observe()
        self.history.promise(len(self.bench.log))

    def bulk(self, name: str, run: Callable[[], Any], content: bytes) -> None:
        """Run a command that changes sector after sector."""
        self.close()
        self.bench.note(f"{self.layout.file}: {name}")
        if self.history.segments:
            self.history.last.tracking = True
            self.history.change(len(self.bench.log), content)
        self.content[:] = content
        if self.history.last.shape is not None and self.history.last.shape.bitmaps:
            self.history.begin(self._segment())
            self.history.last.tracking = True
            self.history.change(len(self.bench.log), content)
        run()
        self._observe()
        self.history.promise(len(self.bench.log))

    def bitmap(self, name: str, change: Change, source: str = "", granularity: int = 512) -> None:
        """Add or change a bitmap."""
        if change in (Change.ADD, Change.CLEAR):
            self.baselines[name] = bytes(self.content)
        elif change in (Change.REMOVE, Change.DISABLE):
            self.baselines.pop(name, None)
        given = granularity if change is Change.ADD else None
        self.command(
            f"bitmap {change.value} {name} {source}",
            lambda: change_bitmap(
                self.reference,
                name,
                [Action(change, source)],
                granularity=given,
                opener=self.bench.opener,
            ),
        )
