"""One execution: a damaged image is written to, and then repaired.

Whatever the image is, each change is refused with an :class:`ImageError` or made: what was written
is then read back, and what could be opened can be opened again. What is left can be repaired, and
then a check finds nothing (but for what the format says is beyond repair), or the repair is
refused; it changes nothing that could be read.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

from imgtool import registry
from imgtool.chain import Opener, OpenPolicy, Reference, Trust
from imgtool.device import BlockDevice
from imgtool.ops.check import CheckReport, check
from imgtool.ops.info import describe
from imgtool.storage.memory import MemoryStorage
from tests.kit.fuzz.reading import PIECE, Outcome, open_image, pieces
from tests.kit.fuzz.rules import (
    OPEN_SECONDS,
    SECONDS,
    Broken,
    Clock,
    WatchedStorage,
    memory_limit,
    refusing,
    time_limit,
)
from tests.kit.fuzz.subject import Subject

#: The file, and the data file, may grow to so many bytes; then the storage is full.
_ROOM = 16 << 20

#: A disk is compared before and after a repair so far; bytes.
_COMPARED = 1 << 20
_SECTOR = 512

_MOST_CHANGES = 8

#: What options are given that have no choices, by their type.
_VALUES = {"bool (on/off)": ("on", "off"), "num": ("1", "8", "64"), "size": ("1M",)}


def change(subject: Subject, image: bytes, seed: int) -> Outcome:
    """Change ``image`` as ``seed`` says, and repair it. Raises whatever breaks a rule."""
    clock = Clock()
    with time_limit(), memory_limit(), subject.during():
        execution = _Execution(subject, image, random.Random(seed))
        execution.run()
        clock.within(SECONDS, "the whole execution")
    return Outcome(not execution.refusals, execution.opened, clock.seconds())


class _Execution:
    def __init__(self, subject: Subject, image: bytes, chance: random.Random) -> None:
        self.opened = False
        self.refusals = 0
        self._subject = subject
        self._chance = chance
        self._image = image
        self._data = bytes(range(256)) * 64
        self._encrypted = False

    def run(self) -> None:
        if self._chance.random() < 0.8:
            self._write()
        if registry.find(self._subject.format).load_repairer() is not None:
            self._repair()

    # Writing

    def _write(self) -> None:
        memory = MemoryStorage(self._image, "x.img", limit=len(self._image) + _ROOM)
        data = MemoryStorage(self._data, "data.raw", limit=len(self._data) + _ROOM)
        self._storages = storage, data_storage = WatchedStorage(memory), WatchedStorage(data)
        with refusing(*self._storages) as refusals:
            clock = Clock()
            device = open_image(
                self._subject, storage, self._subject.format, writable=True, data=data_storage
            )
            clock.within(OPEN_SECONDS, "opening")
            self.opened = True
            with device:
                for _ in range(self._chance.randrange(1, _MOST_CHANGES)):
                    self._change(device)
        self.refusals += len(refusals)
        self._image, self._data = memory.getvalue(), data.getvalue()
        if self.opened:
            self._open_again()

    def _open_again(self) -> None:
        image = WatchedStorage(MemoryStorage(self._image, "x.img", read_only=True))
        data = WatchedStorage(MemoryStorage(self._data, "data.raw", read_only=True))
        with refusing() as refusals:
            open_image(self._subject, image, self._subject.format, data=data).close()
        if refusals:
            raise Broken(f"it cannot be opened any more: {refusals[0]}") from refusals[0]

    def _change(self, device: BlockDevice) -> None:
        changes: tuple[Callable[[BlockDevice], None], ...] = (
            self._write_data, self._write_data, self._write_data, self._write_zeroes,
            self._discard, self._resize, self._snapshot, self._bitmap, self._encoded,
            lambda device: device.flush(), self._amend, lambda device: device.make_empty(),
        )  # fmt: skip
        with refusing(*self._storages) as refusals:
            self._chance.choice(changes)(device)
        self.refusals += len(refusals)

    def _range(self, device: BlockDevice, longest: int = 1 << 18) -> tuple[int, int]:
        size, chance = device.size, self._chance
        offset = chance.choice((0, size // 2, max(0, size - 1), chance.randrange(size + 1)))
        offset = min(size, offset // chance.choice((1, 512, 65536)) * 512)
        return offset, min(size - offset, chance.choice((1, 511, 512, 5000, longest)))

    def _write_data(self, device: BlockDevice) -> None:
        offset, length = self._range(device)
        data = self._chance.randbytes(length)
        device.write_at(offset, data)
        self._expect(device, offset, data)

    def _write_zeroes(self, device: BlockDevice) -> None:
        offset, length = self._range(device, 1 << 22)
        device.write_zeroes(offset, length, unmap=self._chance.random() < 0.5)
        self._expect(device, offset, bytes(length))

    def _discard(self, device: BlockDevice) -> None:
        device.discard(*self._range(device, 1 << 22))

    def _expect(self, device: BlockDevice, offset: int, data: bytes) -> None:
        if device.read_at(offset, len(data)) != data and not _shared(device, offset, len(data)):
            raise Broken(f"what was written at {offset}, {len(data)} bytes, reads differently")

    def _resize(self, device: BlockDevice) -> None:
        step = self._chance.choice((-65536, -512, 512, 65536, 3 << 20, -(device.size // 2)))
        size = max(0, device.size + step) // 512 * 512
        device.resize(size)
        if device.size != size:
            raise Broken(f"a disk resized to {size} bytes has {device.size}")

    def _snapshot(self, device: BlockDevice) -> None:
        names = [found.name for found in device.stored_snapshots or ()]
        ids = [found.id for found in device.stored_snapshots or ()]
        way = self._chance.randrange(4)
        if way < 2 or not names:
            device.create_snapshot("new")
        elif way == 2:
            device.apply_snapshot(self._chance.choice(ids))
        else:
            device.delete_snapshot(self._chance.choice(names))

    def _bitmap(self, device: BlockDevice) -> None:
        loader = registry.find(device.format).load_bitmapper()
        if loader is None:
            return
        bitmaps, names = loader(device), [found.name for found in device.stored_bitmaps or ()]
        way = self._chance.randrange(5)
        if way == 0 or not names:
            bitmaps.add(f"new-{self._chance.randrange(4)}")
        elif way == 1:
            bitmaps.remove(self._chance.choice(names))
        elif way == 2:
            bitmaps.clear(self._chance.choice(names))
        elif way == 3:
            bitmaps.enable(self._chance.choice(names), self._chance.random() < 0.5)
        else:
            bitmaps.merge(self._chance.choice(names), [self._range(device)])

    def _encoded(self, device: BlockDevice) -> None:
        size = device.encoded_size
        if not size or size > 1 << 18 or device.size < size:
            return
        data = b"encoded " * (size // 8)
        (encoded,) = device.encode(data)
        if encoded is not None:
            offset = self._chance.randrange(device.size // size) * size
            device.write_encoded(offset, [encoded])
            self._expect(device, offset, data)

    def _amend(self, device: BlockDevice) -> None:
        chosen = registry.find(device.format)
        amender = chosen.load_amender()
        if amender is None:
            return
        table = chosen.amend_options
        values = [
            (option.name, value)
            for option in table
            for value in (*option.choices, *_VALUES.get(option.type, ()))
        ]
        name, value = self._chance.choice(values)
        amender(device, table.check({name: value}), None)

    # Repairing

    def _repair(self) -> None:
        before = self._contents()
        self._dry_run()
        memory = MemoryStorage(self._image, "x.img", limit=len(self._image) + _ROOM)
        storage = WatchedStorage(memory)
        with refusing(storage) as refusals:
            self._check(storage, repair="all")
        self.refusals += len(refusals)
        self._image = memory.getvalue()
        for piece, (one, other) in enumerate(zip(before, self._contents(), strict=False)):
            if one is not None and one != other and not self._noise(one, other):
                raise Broken(f"a repair changed what is read at {piece * PIECE}")
        if refusals:
            return
        left = self._check(WatchedStorage(MemoryStorage(self._image, "x.img", read_only=True)))
        beyond = (self._subject.beyond_repair(self._image, found) for found in left.messages)
        if not left.clean and not all(beyond):
            raise Broken(f"after a repair: {left.messages[:3]}")

    def _noise(self, before: bytes, after: bytes | None) -> bool:
        """Whether what changed is noise, as which an encrypted image reads what it never stored."""
        if not self._encrypted or after is None:
            return False
        return all(
            after[start : start + _SECTOR] in (before[start : start + _SECTOR], bytes(_SECTOR))
            for start in range(0, len(before), _SECTOR)
        )

    def _dry_run(self) -> None:
        storage = WatchedStorage(MemoryStorage(self._image, "x.img", read_only=True))
        with refusing():
            self._check(storage, repair="all", dry_run=True)
        if storage.writes:
            raise Broken("a dry run wrote to the image")

    def _check(
        self, storage: WatchedStorage, *, repair: str | None = None, dry_run: bool = False
    ) -> CheckReport:
        return check(
            Reference(storage, self._subject.format),
            opener=Opener(OpenPolicy(Trust.NONE)),
            repair=repair,
            dry_run=dry_run,
        )

    def _contents(self) -> list[bytes | None]:
        """The first bytes of the disk in pieces, None where they cannot be read."""
        storage = WatchedStorage(MemoryStorage(self._image, "x.img", read_only=True))
        data = WatchedStorage(MemoryStorage(self._data, "data.raw", read_only=True))
        with (
            refusing(),
            open_image(self._subject, storage, self._subject.format, data=data) as device,
        ):
            self._encrypted = describe(device).encrypted
            return pieces(device, min(device.size, _COMPARED))
        return []


def _shared(device: BlockDevice, offset: int, length: int) -> bool:
    """Whether parts of a range lie in one place, so that what is written last is in all of them."""
    places = sorted(
        (extent.host_offset, extent.length)
        for extent in device.extents(offset, length)
        if extent.host_offset is not None
    )
    return any(start + length > after for (start, length), (after, _) in pairwise(places))
