"""One execution: everything that reads an image, held against the rules."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from imgtool import registry
from imgtool.chain import Opener, OpenPolicy, Override, Reference, Trust
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.ops.check import check
from imgtool.ops.hash import hash_image
from imgtool.ops.info import describe
from imgtool.ops.map import extent_dict
from imgtool.ops.measure import measure
from imgtool.secrets import Secret, Secrets
from imgtool.storage.memory import MemoryStorage
from tests.kit.fuzz.rules import (
    CHECK_BEYOND,
    CHECK_READS,
    DISK_BEYOND,
    DISK_READS,
    INFO_READS,
    OPEN_SECONDS,
    SECONDS,
    Broken,
    Clock,
    WatchedStorage,
    memory_limit,
    read_at_most,
    refusing,
    time_limit,
)
from tests.kit.fuzz.subject import Subject

#: So much of a disk is read at its start and at its end, in pieces; bytes.
SPAN = 2 << 20
_PIECE = 1 << 18
_SECTOR = 512

#: A disk that is compared with what it was is so in pieces of so many bytes.
PIECE = 4096

#: Extents of a disk that are looked at: a small file may well map a very large disk.
_MOST_EXTENTS = 20_000

_NAME = "x.img"


class Outcome(NamedTuple):
    """How an execution ended: was anything refused, was opening, and how long did it take."""

    whole: bool
    opened: bool
    seconds: float


def explore(subject: Subject, image: bytes, *, probe: bool = False) -> Outcome:
    """Open, describe, check, map and read ``image`` within the rules.

    With ``probe`` its format is guessed. Raises whatever breaks a rule.
    """
    clock = Clock()
    with time_limit(), memory_limit(), subject.during():
        explorer = _Explorer(subject, image, None if probe else subject.format)
        explorer.run()
        clock.within(SECONDS, "the whole execution")
    return Outcome(not explorer.refusals, explorer.opened, clock.seconds())


class _Explorer:
    def __init__(self, subject: Subject, image: bytes, format: str | None) -> None:
        self.refusals = 0
        self.opened = False
        self._cluster: int | None = None
        self._size = SPAN + 1
        self._subject = subject
        self._format = format
        self._image = image

    def run(self) -> None:
        self._snapshots: list[str] = []
        self._with(self._metadata, follow=False)
        with self._step():
            self._check()
        self._with(self._contents, self._bitmaps)
        self._whole()
        for wanted in self._snapshots:
            self._with(self._contents, options={"snapshot": wanted})
        self._confined()

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Let a refusal pass, for what comes after."""
        with refusing() as refusals:
            yield
        self.refusals += len(refusals)

    def _with(
        self,
        *uses: Callable[[BlockDevice], None],
        options: Mapping[str, object] | None = None,
        follow: bool = True,
    ) -> None:
        """Open the image, if it can be, and do something with it."""
        self._storage = storage = WatchedStorage(self._memory())
        clock = Clock()
        with self._step():
            device = open_image(self._subject, storage, self._format, options, follow=follow)
            self.opened = True
            clock.within(OPEN_SECONDS, "opening")
            read_at_most(storage, len(self._image), INFO_READS, "opening")
            with device:
                for use in uses:
                    use(device)
        clock.within(SECONDS, "an open image")
        if storage.writes:
            raise Broken(f"{storage.writes} writes to an image that was only read")

    def _memory(self) -> MemoryStorage:
        return MemoryStorage(self._image, _NAME, read_only=True)

    def _metadata(self, device: BlockDevice) -> None:
        """Everything that ``info`` tells."""
        clock = Clock()
        with self._step():
            found = describe(device)
            self._cluster = found.cluster_size
            json.dumps(found.to_dict())
        with self._step():
            _ = device.creation_options, device.stored_bitmaps
        clock.within(OPEN_SECONDS, "info")
        read_at_most(self._storage, len(self._image), INFO_READS, "info")
        with self._step():
            self._snapshots = [found.id for found in device.stored_snapshots or ()][:2]

    def _check(self) -> None:
        if registry.find(self._format or "raw").load_checker() is None:
            return
        for report in (None, _ignore):
            storage = WatchedStorage(self._memory())
            try:
                check(
                    Reference(storage, self._format), opener=_opener(self._subject), report=report
                )
            finally:
                read_at_most(storage, len(self._image), CHECK_READS, "check", CHECK_BEYOND)

    def _contents(self, device: BlockDevice) -> None:
        self._size = size = device.size
        if not 0 <= size < 1 << 63:
            raise Broken(f"a disk of {size} bytes")
        self._extents(device)
        spans = [(0, size)] if size <= 2 * SPAN else [(0, SPAN), (size - SPAN, SPAN)]
        for start, length in spans:
            for offset in range(start, start + length, _PIECE):
                with self._step():
                    self._read(device, offset, min(_PIECE, start + length - offset))

    def _read(self, device: BlockDevice, offset: int, length: int) -> None:
        before = self._storage.bytes_read
        first = device.read_at(offset, length)
        if len(first) != length:
            raise Broken(f"{len(first)} bytes in place of {length}")
        taken = self._storage.bytes_read - before
        if taken > DISK_READS * length + DISK_BEYOND * (self._cluster or _SECTOR):
            raise Broken(f"reading {length} bytes read {taken} of the file")
        if (
            device.read_at(offset + length // 3, min(length - length // 3, 999))
            != (first[length // 3 :][:999])
        ):
            raise Broken(f"what is read at {offset} changes")

    def _extents(self, device: BlockDevice) -> None:
        position = 0
        with self._step():
            for extent in itertools.islice(device.extents(), _MOST_EXTENTS):
                if extent.offset != position or extent.length <= 0:
                    raise Broken(f"after {position} comes {extent}")
                extent_dict(extent)
                position = extent.end
                if position > device.size:
                    raise Broken(f"{extent} lies outside a disk of {device.size} bytes")

    def _whole(self) -> None:
        """What goes through the disk from one end to the other, if that is not far."""
        if self._size > SPAN:
            return
        opener = _opener(self._subject)
        with self._step():
            measure(self._alone(), opener=opener)
        with self._step():
            hash_image(self._alone(), workers=1, opener=opener)

    def _alone(self) -> Reference:
        return Reference(self._memory(), self._subject.format, {}, _children(None))

    def _bitmaps(self, device: BlockDevice) -> None:
        loader = registry.find(device.format).load_bitmapper()
        with self._step():
            for bitmap in (device.stored_bitmaps or ())[:3]:
                if loader is not None:
                    with self._step():
                        for _ in itertools.islice(loader(device).ranges(bitmap.name), 1000):
                            pass

    def _confined(self) -> None:
        """What the image names is refused, for lack of a directory: a refusal is all there is."""
        with refusing():
            _opener(self._subject).image(self._memory(), self._format).close()


def open_image(
    subject: Subject,
    storage: WatchedStorage,
    format: str | None,
    options: Mapping[str, object] | None = None,
    *,
    follow: bool = True,
    writable: bool = False,
    data: WatchedStorage | None = None,
) -> BlockDevice:
    """Open an image alone: on no backing image, and with a data file in memory if it wants one."""
    opener = _opener(subject, follow=follow, writable=writable)
    return opener.reference(Reference(storage, format, options or {}, _children(data)))


def pieces(device: BlockDevice, length: int) -> list[bytes | None]:
    """The first ``length`` bytes of a disk in pieces of :data:`PIECE`, None what can't be read."""
    found: list[bytes | None] = []
    for offset in range(0, length, PIECE):
        try:
            found.append(device.read_at(offset, min(PIECE, length - offset)))
        except ImageError:
            found.append(None)
    return found


def _children(data: WatchedStorage | None) -> dict[str, Override]:
    """No backing image, and a data file in memory."""
    chosen = MemoryStorage(_DATA, "data.raw", read_only=True) if data is None else data
    return {"backing": None, "data-file": Reference(chosen, "raw")}


def _opener(subject: Subject, *, follow: bool = True, writable: bool = False) -> Opener:
    secret = None if subject.password is None else Secret(subject.password)
    return Opener(
        policy=OpenPolicy(Trust.CONFINED),
        follow=follow,
        writable=writable,
        secrets=Secrets(password=secret),
    )


_DATA = bytes(range(256)) * 64
_ignore: Callable[[str], None] = lambda line: None  # noqa: E731
