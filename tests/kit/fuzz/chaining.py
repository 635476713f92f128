"""One execution: a damaged image in a backing chain with sound ones, which work on whole chains.

It lies under a sound overlay, over a sound base, or both. The chain is converted, committed,
rebased, compacted and compared, as files, by the package's public functions. Whatever the image is:

* a disk reads the same after a change of its chain, done or refused, where it could be read before;
* what is converted or committed is what was read; what can't be read is not converted;
* a conversion that is refused leaves no file;
* no file changes but those that are to be written.

What is written into an image in which a check finds corruption may be lost with it, since two guest
clusters may be one there: such a chain can at least still be opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imgtool
from imgtool.budget import Budget
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from tests.kit.fuzz.reading import PIECE, Outcome, pieces
from tests.kit.fuzz.rules import SECONDS, Broken, Clock, memory_limit, time_limit
from tests.kit.fuzz.subject import Subject
from tests.kit.scratch import scratch

MiB = 1 << 20

#: The longest disk, and the longest file; bytes.
_LONGEST = 128 * MiB
_LONGEST_FILE = 256 * MiB

#: The steps of work of one job.
_WORK = 300_000

#: Disks are compared so far; bytes.
_COMPARED = 1 * MiB

_MOST_STEPS = 4

_DATA = bytes(range(256)) * 64


class Contents(NamedTuple):
    """The first ``length`` bytes of a disk in pieces, None where they cannot be read."""

    length: int
    pieces: list[bytes | None]


class Layer(NamedTuple):
    """An image of a chain."""

    path: Path
    format: str


def chain(subject: Subject, image: bytes, seed: int) -> Outcome:
    """Do with chains of ``image`` what ``seed`` says. Raises whatever breaks a rule."""
    clock = Clock()
    with time_limit(), memory_limit(), subject.during(), _files_end(), scratch() as folder:
        execution = _Execution(subject, folder, image, random.Random(seed))
        execution.run()
        clock.within(SECONDS, "the whole execution")
    return Outcome(not execution.refusals, execution.opened, clock.seconds())


@contextlib.contextmanager
def _files_end() -> Iterator[None]:
    """Let no file become longer than ``_LONGEST_FILE``: the host says EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LONGEST_FILE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class _Execution:
    def __init__(self, subject: Subject, folder: Path, image: bytes, chance: random.Random) -> None:
        self.opened = False
        self.refusals = 0
        self._subject = subject
        self._chance = chance
        self._folder = folder
        self._image = folder / "x.img"
        self._image.write_bytes(image)
        #: From the top down.
        self._chain = [Layer(self._image, subject.format)]
        for name in ("base.img", "other.img"):
            (folder / name).write_bytes(chance.randbytes(chance.choice((100, 5000, 70000))))
        # What the seeds call their data file.
        (folder / "data.raw").write_bytes(_DATA)

    def run(self) -> None:
        if self._chance.random() < 0.5:
            self._lay_on_base()
        with self._refusing(), self._open() as device:
            if device.backing is not None:
                self._chain.append(Layer(Path(device.backing.name), device.backing.format))
        if self._chance.random() < 0.7:
            self._lay_overlay()
        with self._refusing(), self._open() as device:
            self.opened = True
        if not self.opened:
            return
        steps: Sequence[Callable[[], None]] = (
            self._convert, self._convert, self._convert_over, self._commit, self._commit,
            self._rebase, self._compact, self._look,
        )  # fmt: skip
        for _ in range(self._chance.randrange(1, _MOST_STEPS)):
            self._chance.choice(steps)()

    # The chain

    def _lay_on_base(self) -> None:
        """Have the damaged image name a base, if it can."""
        base = self._folder / "base.img"
        with self._refusing():
            imgtool.rebase(
                self._image, base.name, "raw", format=self._subject.format, unsafe=True,
                password=self._subject.password, budget=_budget(),
            )  # fmt: skip

    def _lay_overlay(self) -> None:
        """Put a sound overlay over the damaged image, with something in it."""
        over, chance = self._folder / "over.qcow2", self._chance
        imgtool.create(
            over, chance.choice((512, 20 << 9, 1 << 20, 5 << 20)), backing_file=self._image.name,
            backing_format=self._subject.format, unsafe=True,
            cluster_size=chance.choice((512, 4096, 65536)),
        )  # fmt: skip
        self._chain.insert(0, Layer(over, "qcow2"))
        with self._refusing(), self._open(writable=True) as device:
            for _ in range(chance.randrange(4)):
                offset = chance.randrange(device.size)
                length = min(device.size - offset, chance.choice((1, 512, 5000, 100_000)))
                if chance.random() < 0.3:
                    device.write_zeroes(offset, length)
                else:
                    device.write_at(offset, chance.randbytes(length))

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[list[BaseException]]:
        """Let pass, and note, what an image or the end of a file refuses."""
        refusals: list[BaseException] = []
        try:
            yield refusals
        except ImageError as error:
            refusals.append(error)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            refusals.append(error)
        self.refusals += len(refusals)

    def _open(self, place: int = 0, *, writable: bool = False) -> BlockDevice:
        layer = self._chain[place]
        return imgtool.open(
            layer.path, format=layer.format, writable=writable, password=self._subject.password,
            budget=_budget(),
        )  # fmt: skip

    def _contents(self, place: int = 0, length: int = _COMPARED) -> Contents | None:
        """The first bytes of a disk of the chain, or None if it can't be opened."""
        with self._refusing(), self._open(place) as device:
            return _read(device, length)
        return None

    def _sound(self, *places: int) -> bool:
        """Whether a check finds no corruption in the images that are to be written."""
        for place in places:
            layer = self._chain[place]
            if layer.format == "qcow2":
                with self._refusing() as refusals:
                    if imgtool.check(layer.path, format=layer.format, budget=_budget()).corruptions:
                        return False
                if refusals:
                    return False
        return True

    @contextlib.contextmanager
    def _only(self, *written: Path) -> Iterator[None]:
        """Hold that no image of the chain changes but those."""
        before = {path: _digest(path) for path, _ in self._chain if path not in written}
        yield
        if changed := [path.name for path, digest in before.items() if _digest(path) != digest]:
            raise Broken(f"{changed} changed")

    def _same(self, before: Contents, what: str, place: int = 0, *, contents: bool = True) -> None:
        """Hold that a disk opens, and, with ``contents``, reads as it did, where it could be."""
        after = self._contents(place, before.length)
        if after is None:
            raise Broken(f"{what}: cannot be opened any more")
        if contents:
            _hold(before, after, what)

    # What is done with it

    def _convert(self) -> None:
        before, chance = self._contents(), self._chance
        target = self._folder / "out.img"
        target.unlink(missing_ok=True)
        target_format = chance.choice(("raw", "qcow2"))
        options: dict[str, Any] = {"salvage": chance.random() < 0.2}
        if target_format == "qcow2":
            options["compress"] = chance.choice((False, "zlib", "zstd"))
            if chance.random() < 0.3:
                options |= {"backing_file": "other.img", "backing_format": "raw"}
        with self._only(), self._refusing() as refusals:
            self._into(Layer(target, target_format), **options)
        if refusals:
            if target.exists():
                raise Broken(f"a conversion that failed left a file: {refusals[0]}")
            return
        self._converted(before, Layer(target, target_format), options["salvage"])

    def _convert_over(self) -> None:
        """Onto an image that exists, and holds something else."""
        before = self._contents()
        target = Layer(self._folder / "out.img", self._chance.choice(("raw", "qcow2")))
        with self._refusing() as refusals, self._open() as device:
            size = device.size
        if refusals:
            return
        imgtool.create(target.path, -(-size // 512) * 512, format=target.format)
        with imgtool.open(target.path, format=target.format, writable=True) as device:
            device.write_at(0, b"other" * (min(size, _COMPARED) // 5))
        with self._only(), self._refusing() as refusals:
            self._into(target, create=False)
        if not refusals:
            self._converted(before, target, salvaged=False)

    def _into(self, target: Layer, **options: Any) -> None:
        top = self._chain[0]
        imgtool.convert(
            top.path, target.path, format=target.format, source_format=top.format, budget=_budget(),
            password=self._subject.password, workers=self._chance.choice((1, 2)),
            sparse_size=self._chance.choice((0, 4096)), **options,
        )  # fmt: skip

    def _converted(self, before: Contents | None, target: Layer, salvaged: bool) -> None:
        if before is None:
            raise Broken("what cannot be opened was converted")
        if None in before.pieces and not salvaged:
            raise Broken("what cannot be read was converted")
        with imgtool.open(target.path, format=target.format) as device:
            _hold(before, _read(device, before.length), f"converted to {target.format}")
        if not salvaged:
            self._compared(target)

    def _compared(self, target: Layer) -> None:
        top = self._chain[0]
        with self._refusing():
            found = imgtool.compare(
                top.path, target.path, first_format=top.format, second_format=target.format,
                password=self._subject.password, budget=_budget(),
            )  # fmt: skip
            if not found.identical:
                raise Broken(f"what was converted differs: {found}")

    def _commit(self) -> None:
        before, chance = self._contents(), self._chance
        depth = chance.randrange(1, max(2, len(self._chain)))
        drop = depth > 1 or chance.random() < 0.5
        places = [place for place in (depth, *(() if drop else (0,))) if place < len(self._chain)]
        whole, top = self._sound(*places), self._chain[0]
        written = [self._chain[place].path for place in places]
        with self._only(*written), self._refusing() as refusals:
            imgtool.commit(
                top.path, format=top.format, base=written[0] if depth > 1 else None, drop=drop,
                budget=_budget(), password=self._subject.password,
            )  # fmt: skip
        if before is None:
            return
        if depth == 1 or refusals:
            self._same(before, "a commit", contents=whole)
        if refusals:
            return
        if None in before.pieces and self._chain[depth].format == "raw":
            raise Broken("what cannot be read was committed")
        self._same(before, "a base after a commit", depth, contents=whole)

    def _rebase(self) -> None:
        before, chance = self._contents(), self._chance
        name = chance.choice(("other.img", "base.img", None))
        whole = self._sound(0)
        top = self._chain[0]
        with self._only(top.path), self._refusing() as refusals:
            imgtool.rebase(
                top.path, name, None if name is None else "raw", format=top.format,
                compress=chance.random() < 0.3, budget=_budget(), password=self._subject.password,
            )  # fmt: skip
        if not refusals:
            below = [] if name is None else [Layer(self._folder / name, "raw")]
            self._chain[1:] = below
        if before is None:
            return
        if None in before.pieces and not refusals and top.path != self._image:
            raise Broken("an image was rebased without what cannot be read")
        self._same(before, "a rebase", contents=whole)

    def _compact(self) -> None:
        before, top = self._contents(), self._chain[0]
        target = self._chance.choice((None, self._folder / "compact.img"))
        with self._only(*(() if target else (top.path,))), self._refusing() as refusals:
            imgtool.compact(
                top.path, target, format=top.format, password=self._subject.password,
                compress=self._chance.choice((None, True, False)) if target else None,
                budget=_budget(),
            )  # fmt: skip
        if before is None:
            return
        self._same(before, "compacting")
        if target and not refusals:
            with imgtool.open(target, format=top.format, password=self._subject.password) as device:
                _hold(before, _read(device, before.length), "compacted")

    def _look(self) -> None:
        """What only reads a chain."""
        top, password = self._chain[0], self._subject.password
        with self._only():
            with self._refusing():
                imgtool.info(top.path, format=top.format, backing_chain=True, budget=_budget())
            with self._refusing():
                for _ in imgtool.map(
                    top.path, format=top.format, password=password, budget=_budget()
                ):
                    pass
            with self._refusing():
                imgtool.measure(
                    top.path, source_format=top.format, password=password, budget=_budget()
                )
            with self._refusing():
                first, second = (
                    imgtool.hash(top.path, format=top.format, password=password, budget=_budget())
                    for _ in range(2)
                )
                if first != second:
                    raise Broken("a disk has two hashes")


def _budget() -> Budget:
    return Budget(max_virtual_size=_LONGEST, max_work=_WORK)


def _read(device: BlockDevice, length: int) -> Contents:
    length = min(device.size, length)
    return Contents(length, pieces(device, length))


def _hold(before: Contents, after: Contents, what: str) -> None:
    """Raise :class:`Broken` unless all that was read is read again."""
    if after.length != before.length:
        raise Broken(f"{what}: shorter than before")
    for number, (one, other) in enumerate(zip(before.pieces, after.pieces, strict=True)):
        if one is not None and one != other:
            raise Broken(f"{what}: other contents at {number * PIECE}")


def _digest(path: Path) -> str:
    """What tells one file's contents from another's."""
    found = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(MiB):
            found.update(piece)
    return found.hexdigest()
