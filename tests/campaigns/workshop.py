"""Running a scenario, and judging what it left."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import imgtool
from imgtool import ImageError
from imgtool.cli.main import run
from tests.campaigns.scenarios.folders import ANY
from tests.campaigns.scenarios.model import Image, Scenario
from tests.kit import referee

#: A COPIED flag that is not what the refcount says loses nothing: see :func:`_check`.
_FLAG = re.compile(r"ERROR OFLAG_COPIED .*refcount=")


class Wrong(AssertionError):
    """What a promise rules out has happened."""


@dataclass
class Outcome:
    """How a command ended: its exit status, and what it printed."""

    status: int
    out: str = ""
    err: str = ""


@dataclass(frozen=True)
class View:
    """What an image shows. ``bitmaps`` maps names to dirty ranges, None for those not usable."""

    size: int
    content: bytes
    snapshots: dict[str, bytes]
    bitmaps: dict[str, tuple[tuple[int, int], ...] | None]


def look(path: Path, image: Image) -> View:
    """Read everything that an image shows."""
    with imgtool.open(path, format=image.format, password=image.password, policy=ANY) as disk:
        bitmaps: dict[str, tuple[tuple[int, int], ...] | None] = {}
        for bitmap in disk.stored_bitmaps or ():
            bitmaps[bitmap.name] = None
            if not bitmap.inconsistent:
                bitmaps[bitmap.name] = tuple(disk.bitmap_ranges(bitmap.name))  # type: ignore[attr-defined]
        size, content = disk.size, disk.read_at(0, disk.size)
        names = [snapshot.name for snapshot in disk.stored_snapshots or ()]
    snapshots = {}
    for name in names:
        with imgtool.open(path, format=image.format, snapshot=name, policy=ANY) as disk:
            snapshots[name] = disk.read_at(0, disk.size)
    return View(size, content, snapshots, bitmaps)


class Workshop:
    """One scenario in ``folder``: its files before, what they show before and after, and copies."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._pristine = folder / "pristine"
        self.place = folder / "place"
        self._pristine.mkdir(parents=True)
        scenario.build(self._pristine)
        self.before = self._views(self._pristine)
        self._digests = self._kept_files(self._pristine)
        self.reset()
        self.clean = self.run()
        if self.clean.status and scenario.name != "compare-unlike":
            raise Wrong(f"{scenario.name}: without any fault it fails: {self.clean}")
        self.after = self._views(self.place)
        self._stages = [self._stage(words) for words in scenario.stages if not scenario.reads]
        self._names = set(os.listdir(self._pristine)) | set(os.listdir(self.place))

    def reset(self) -> None:
        """Put fresh copies of the files into the place."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._pristine, self.place)

    def run(self, command: tuple[str, ...] | None = None) -> Outcome:
        """Run the command, or another, in the place, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with inside(self.place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(self.scenario.command if command is None else command)
        return Outcome(status, out.getvalue(), err.getvalue())

    def _stage(self, command: tuple[str, ...]) -> dict[str, View]:
        self.reset()
        assert not self.run(command).status
        return self._views(self.place)

    def _views(self, folder: Path) -> dict[str, View]:
        return {
            image.name: look(folder / image.name, image)
            for image in self.scenario.images
            if (folder / image.name).exists()
        }

    def _kept_files(self, folder: Path) -> dict[str, str]:
        """Digests of the files that the command has no business with."""
        touched = {image.name for image in self.scenario.images}
        return {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in os.listdir(folder)
            if name not in touched and not name.endswith(".data")
        }

    # Judging

    def judge(
        self, *, killed: bool = False, finished: bool = False, qemu: bool = False
    ) -> set[str]:
        """Judge what is in the place now; return what is worth noting. Raises :class:`Wrong`.

        ``killed`` says that nothing could be tidied up, ``finished`` that the command said it had
        succeeded; with ``qemu`` the real qemu-img is asked as well.
        """
        notes: set[str] = set()
        left = set(os.listdir(self.place))
        if not killed and left - self._names:
            raise Wrong(f"left behind: {sorted(left - self._names)}")
        if not self._names - _made(self.scenario) <= left | {"new.data"}:
            raise Wrong(f"lost: {sorted(self._names - left)}")
        now = self._kept_files(self.place)
        for name, digest in self._digests.items():
            if now.get(name) != digest:
                raise Wrong(f"{name} was changed")
        for image in self.scenario.images:
            path = self.place / image.name
            if image.fate == "made":
                self._judge_made(image, path, killed, finished, notes)
            else:
                self._judge_changed(image, path, finished, notes)
            if qemu and image.format == "qcow2" and path.exists() and "no image" not in notes:
                found = referee.check(path)
                if found.get("corruptions") and not notes & {"COPIED flags", "not yet repaired"}:
                    raise Wrong(f"qemu-img check of {image.name}: {found}")
        return notes

    def _judge_made(
        self, image: Image, path: Path, killed: bool, finished: bool, notes: set[str]
    ) -> None:
        whole = self.after[image.name]
        if not path.exists():
            if finished:
                raise Wrong(f"{image.name} is not there")
            notes.add("no file")
            return
        if not killed and not finished and image.name not in self.before and path.stat().st_size:
            raise Wrong(f"{image.name} was not removed")
        try:
            found = look(path, image)
        except ImageError as error:
            if finished:
                raise Wrong(f"{image.name} does not open: {error}") from error
            notes.add("no image")
            return
        if image.format == "raw" and not finished and found.size < whole.size:
            notes.add("short raw file")
            return
        before = self.before.get(image.name)
        if before is not None and not finished and found == before:
            notes.add("as before")
            return
        self._expect(image, found, whole)
        notes.update(self._check(image, path))

    def _judge_changed(self, image: Image, path: Path, finished: bool, notes: set[str]) -> None:
        before, after = self.before[image.name], self.after[image.name]
        try:
            found = look(path, image)
        except (ImageError, OSError) as error:
            raise Wrong(f"{image.name} does not open: {error}") from error
        if finished:
            self._expect(image, found, after)
        elif image.fate == "kept":
            self._expect(image, found, before, also=after)
        else:
            if found.size not in (before.size, after.size):
                raise Wrong(f"{image.name} has a third size: {found.size}")
            between = [stage[image.name].content for stage in self._stages]
            one_of(image.name, found.content, [before.content, after.content, *between])
            self._expect_snapshots(image, found, before, after)
            self._expect_bitmaps(image, found, before, after)
        notes.update(self._check(image, path))

    def _expect(self, image: Image, found: View, wanted: View, also: View | None = None) -> None:
        if image.random:
            if found.size != wanted.size:
                raise Wrong(f"{image.name} has another size")
        elif found.content != wanted.content and (also is None or found.content != also.content):
            place = next(
                (
                    at
                    for at, (a, b) in enumerate(zip(found.content, wanted.content, strict=False))
                    if a != b
                ),
                min(len(found.content), len(wanted.content)),
            )
            raise Wrong(f"{image.name} shows something else from byte {place} on")
        self._expect_snapshots(image, found, wanted, also or wanted)
        self._expect_bitmaps(image, found, wanted, also or wanted)

    def _expect_snapshots(self, image: Image, found: View, before: View, after: View) -> None:
        if found.snapshots not in (before.snapshots, after.snapshots):
            raise Wrong(f"{image.name} has other snapshots: {sorted(found.snapshots)}")

    def _expect_bitmaps(self, image: Image, found: View, before: View, after: View) -> None:
        """Each is as it was, as it is to be, or says itself that it cannot be relied upon."""
        for name, ranges in found.bitmaps.items():
            allowed = [view.bitmaps[name] for view in (before, after) if name in view.bitmaps]
            marked = ranges is not None and found.content != before.content
            if not allowed:
                raise Wrong(f"{image.name} has a third bitmap: {name}")
            if marked and found.content != after.content:
                # Some of the writes arrived: what they changed must be marked.
                _expect_marked(image.name, name, ranges or (), found, before)
            elif ranges is not None and ranges not in allowed:
                raise Wrong(f"bitmap {name} of {image.name} is neither old nor new: {ranges}")

    def _check(self, image: Image, path: Path) -> set[str]:
        """Check an image. Leaks are allowed; so are COPIED flags, which repair sets right.

        A crash between a refcount and the flag in another cluster that goes with it cannot be
        told from either order, and neither loses anything: a flag too few copies once too often,
        and a flag too many is on a cluster that only a leak counts twice.
        """
        if image.format != "qcow2":
            return set()
        found = imgtool.check(path, format="qcow2")
        if found.check_errors:
            raise Wrong(f"check of {image.name}: {found.messages}")
        if not found.corruptions:
            return {"leaks"} if found.leaks else set()
        copy = path.with_name("repaired")
        try:
            shutil.copyfile(path, copy)
            flags = [text for text in found.messages if _FLAG.search(text)]
            if not image.broken and len(flags) != found.corruptions:
                raise Wrong(f"check of {image.name}: {found.messages[:5]}")
            imgtool.check(copy, format="qcow2", repair="all")
            if not imgtool.check(copy, format="qcow2").clean:
                raise Wrong(f"{image.name} cannot be repaired")
            if look(copy, image).content != look(path, image).content:
                raise Wrong(f"{image.name} shows something else once it is repaired")
        finally:
            copy.unlink(missing_ok=True)
        return {"not yet repaired" if image.broken else "COPIED flags"}


def _made(scenario: Scenario) -> set[str]:
    return {image.name for image in scenario.images if image.fate == "made"}


def _expect_marked(
    image: str, name: str, ranges: tuple[tuple[int, int], ...], found: View, before: View
) -> None:
    length = min(found.size, before.size) // 512 * 512
    old = np.frombuffer(before.content[:length], np.uint8).reshape(-1, 512)
    new = np.frombuffer(found.content[:length], np.uint8).reshape(-1, 512)
    for sector in np.flatnonzero((old != new).any(axis=1)).tolist():
        if not any(start <= sector * 512 < start + count for start, count in ranges):
            raise Wrong(f"bitmap {name} of {image} lacks the change of sector {sector}")


def one_of(name: str, found: bytes, allowed: list[bytes]) -> None:
    """Every sector must be that of one of the contents ``allowed``, which may be shorter."""
    sectors = np.frombuffer(found, np.uint8).reshape(-1, 512)
    same = np.zeros(len(sectors), np.bool_)
    for content in allowed:
        other = np.frombuffer(content.ljust(len(found), b"\0")[: len(found)], np.uint8)
        same |= (sectors == other.reshape(-1, 512)).all(axis=1)
    if not same.all():
        wrong = np.flatnonzero(~same)
        raise Wrong(
            f"{name}: {len(wrong)} sectors are neither old nor new, sector {wrong[0]} first"
        )


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a directory."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
