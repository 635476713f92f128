"""What every state has to satisfy: it opens, it is whole, nothing promised is lost, it lasts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from imgtool.chain import OpenPolicy, Reference, Trust
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.formats.qcow2.check import check
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage
from tests.campaigns.crash.bench import SECRETS, Disk
from tests.campaigns.crash.history import Bits, Candidate, Shape, differing, strangers
from tests.campaigns.crash.observe import Layout, shape_of
from tests.kit.recording import SECTOR, RecordingOpener

#: The part of the states that are opened once more after more was written to them.
_LASTING = 0.15


class Wrong(Exception):
    """A state that should not be."""


class StateFile(MemoryStorage):
    """A file of a state. Closing it leaves it for the next who opens it."""

    def __init__(self, name: str, data: bytearray) -> None:
        super().__init__(b"", f"/disks/{name}")
        self._data = data

    @property
    def directory(self) -> str | None:
        return "/disks"

    def discard(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size())
        if offset < end:
            self.write_zeroes(offset, end - offset)

    def close(self) -> None:
        """Stay open."""


class Verdict(NamedTuple):
    """What was seen on the way: how often an image was repaired, or its flags had lagged."""

    repaired: bool
    flags_lagged: bool


def judge(
    files: Mapping[str, StateFile],
    disks: Iterable[Disk],
    position: int,
    chance: random.Random,
    seen: set[int] | None = None,
) -> Verdict:
    """Raise :class:`Wrong` unless the state is one that may be at this place in the log.

    ``seen`` remembers disks that have been judged: one whose files, and what they may hold, are as
    they were once is passed over.
    """
    opener = RecordingOpener(
        policy=OpenPolicy(Trust.ANY), files=files, writable=True, secrets=SECRETS
    )
    repaired = lagged = False
    marks = (
        {name: hash(file.getvalue()) for name, file in files.items()} if seen is not None else {}
    )
    # What lies on top goes first: writing to a backing image changes what it shows.
    for number, disk in reversed(list(enumerate(disks))):
        candidates = disk.history.candidates(position)
        if seen is not None:
            held = [marks.get(name) for name in disk.layout.files or sorted(files)]
            # All contents are kept for as long as the recording is, so that they can be told apart.
            allowed = [(id(one.contents[0]), len(one.contents)) for one in candidates]
            mark = hash((number, *held, *allowed))
            if mark in seen:
                continue
            seen.add(mark)
        found = _Judgement(disk.layout, files, opener, candidates, chance).run()
        repaired |= found.repaired
        lagged |= found.flags_lagged
    return Verdict(repaired, lagged)


class _Judgement:
    def __init__(
        self,
        layout: Layout,
        files: Mapping[str, Storage],
        opener: RecordingOpener,
        candidates: list[Candidate],
        chance: random.Random,
    ) -> None:
        self._layout, self._files, self._opener = layout, files, opener
        self._candidates, self._chance = candidates, chance
        self._lagged = False

    def run(self) -> Verdict:
        absent = any(one.segment.shape is None for one in self._candidates)
        storage = self._files.get(self._layout.file)
        if absent and (storage is None or not self._opens(storage)):
            return Verdict(False, False)
        if storage is None:
            raise Wrong("the file is gone")
        repaired = self._prepare(storage)
        reference = self._layout.reference(self._files)
        try:
            device = self._opener.reference(reference)
        except (ImageError, OSError) as error:
            raise Wrong(f"it does not open: {error}") from error
        with device:
            if not repaired:
                self._check(device, "")
            content = device.read_at(0, device.size)
            shape = shape_of(device, reference, self._opener)
            self._find(shape, content)
            expected = self._write_more(device, content)
            self._check(device, " after more was written")
            if device.read_at(0, device.size) != expected:
                raise Wrong("what was written afterwards reads differently")
        if self._chance.random() < _LASTING:
            self._open_again(reference, shape, expected)
        return Verdict(repaired, self._lagged)

    def _open_again(self, reference: Reference, shape: Shape, expected: bytes) -> None:
        with replace(self._opener, writable=False).reference(reference) as device:
            self._check(device, " after it was closed")
            again = shape_of(device, reference, self._opener)
            if again.snapshots != shape.snapshots:
                raise Wrong("a snapshot changed when more was written")
            if device.read_at(0, device.size) != expected:
                raise Wrong("what was written afterwards reads differently once it is opened")

    def _opens(self, storage: Storage) -> bool:
        """Whether there is an image at all, for what is only being made."""
        if self._layout.format == "raw":
            # It is as long as its disk when it is done.
            shapes = [one.segment.shape for one in self._candidates]
            return storage.size() >= min(shape.size for shape in shapes if shape is not None)
        reading = replace(self._opener, writable=False)
        try:
            with reading.reference(self._layout.reference(self._files)):
                return True
        except ImageError:
            return False

    def _prepare(self, storage: Storage) -> bool:
        """Repair what says of itself that it wants it, having looked at what it holds."""
        if self._layout.format != "qcow2":
            return False
        head = storage.read_at(0, 80)
        dirty = head[7] >= 3 and head[79] & 1
        damaged = any(one.segment.damaged for one in self._candidates)
        if not dirty and not damaged:
            return False
        reading = replace(self._opener, writable=False)
        reference = self._layout.reference(self._files)
        before = None
        if not damaged:
            try:
                with reading.reference(reference) as device:
                    before = device.read_at(0, device.size)
            except ImageError as error:
                raise Wrong(f"it is dirty and does not open for reading: {error}") from error
        try:
            left = repair(storage, "all")
        except ImageError as error:
            raise Wrong(f"it cannot be repaired: {error}") from error
        if left.corruptions or left.check_errors or left.leaks:
            raise Wrong(f"repair leaves {left.corruptions} errors, {left.leaks} leaks")
        with reading.reference(reference) as device:
            found = check(device)
            if found.corruptions or found.check_errors or found.leaks:
                raise Wrong(f"repair left more than it said: {found.messages[:3]}")
            if before is not None and device.read_at(0, device.size) != before:
                raise Wrong("repair changed what the disk holds")
        return True

    def _check(self, device: BlockDevice, when: str) -> None:
        if device.format != "qcow2":
            return
        result = check(device)
        if not (result.corruptions or result.check_errors):
            return
        lag = any(one.segment.flags_lag for one in self._candidates)
        if lag and all("OFLAG_COPIED" in text or "Leaked" in text for text in result.messages):
            self._lagged = True
            return
        raise Wrong(
            f"check finds {result.corruptions} corruptions, {result.check_errors} errors{when}: "
            f"{result.messages[:4]}"
        )

    # What it is and what it holds

    def _find(self, shape: Shape, content: bytes) -> None:
        reasons = []
        for one in reversed(self._candidates):
            reason = self._mismatch(one, shape, content)
            if reason is None:
                return
            reasons.append(reason)
        raise Wrong("; or ".join(reasons))

    def _mismatch(self, one: Candidate, shape: Shape, content: bytes) -> str | None:
        wanted = one.segment.shape
        if wanted is None:
            return "it is an image before it should be one"
        if shape.size != wanted.size:
            return f"its size is {shape.size}, not {wanted.size}"
        if shape.facts != wanted.facts:
            return f"its header says {shape.facts}, not {wanted.facts}"
        if shape.snapshots != wanted.snapshots:
            names = [name for name, _ in shape.snapshots], [name for name, _ in wanted.snapshots]
            return f"its snapshots are {names[0]}, not {names[1]}, or show something else"
        reason = _bitmaps_differ(one, shape, wanted)
        if reason is not None:
            return reason
        wrong = list(strangers(content, one.contents))
        if wrong:
            return f"{len(wrong)} sectors hold what they should not, the first is {wrong[0]:#x}"
        return _lost_changes(one, shape.bitmaps, content)

    # It goes on being used

    def _write_more(self, device: BlockDevice, content: bytes) -> bytes:
        expected = bytearray(content)
        sectors = device.size // SECTOR
        for _ in range(5 if sectors else 0):
            start = self._chance.randrange(sectors) * SECTOR
            length = min(self._chance.choice((512, 1024, 4096, 9000)), device.size - start)
            data = self._chance.randbytes(64) * (length // 64 + 1)
            device.write_at(start, data[:length])
            expected[start : start + length] = data[:length]
        device.flush()
        return bytes(expected)


def _bitmaps_differ(one: Candidate, shape: Shape, wanted: Shape) -> str | None:
    if len(shape.bitmaps) != len(wanted.bitmaps):
        return f"it has {len(shape.bitmaps)} bitmaps, not {len(wanted.bitmaps)}"
    for seen, meant in zip(shape.bitmaps, wanted.bitmaps, strict=True):
        distrusted = seen.ranges is None and one.segment.tracking
        if seen != (meant._replace(ranges=None) if distrusted else meant):
            return f"its bitmap is {seen}, not {meant}"
    return None


def _lost_changes(one: Candidate, bitmaps: tuple[Bits, ...], content: bytes) -> str | None:
    """Whether a bitmap that passes for true knows nothing of a sector that has changed."""
    for bits in bitmaps:
        baseline = one.segment.baselines.get(bits.name)
        if bits.ranges is None or not bits.enabled or baseline is None:
            continue
        for sector in differing(content, baseline):
            place = sector * SECTOR
            if not any(start <= place < start + length for start, length in bits.ranges):
                return f"bitmap '{bits.name}' does not know that sector {sector:#x} changed"
    return None
