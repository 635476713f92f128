"""Compact: give the host back what an image holds and does not need."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, CorruptImage, ImageError
from imgtool.extent import Extent, Kind, coalesce
from imgtool.names import file_path, identity_of
from imgtool.ops.check import check
from imgtool.ops.convert import blocks, convert
from imgtool.ops.convert.plan import Window, windows
from imgtool.ops.identities import identities, refuse_files_that_are_read
from imgtool.progress import Progress
from imgtool.ranges import Ranges, joined, without
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.units import align_down, align_up
from imgtool.workers import Workers

#: How a host says that directories cannot be flushed, or not by us.
_NO_DIRECTORIES = frozenset(
    {errno.EACCES, errno.EPERM, errno.EINVAL, errno.EISDIR, errno.ENOTSUP, errno.EOPNOTSUPP}
)

#: Windows that are read ahead of the one that is dealt with.
_AHEAD = 8
_BLOCK = 4096


class Footprint(NamedTuple):
    """What a file takes, in bytes: ``stored`` of the host's storage, and its ``length``."""

    stored: int
    length: int

    def to_dict(self) -> dict[str, Any]:
        """The figures under the names that ``info`` has for them."""
        return {"actual-size": self.stored, "file-length": self.length}


class Compaction(NamedTuple):
    """What an image's files took before they were compacted, and what they take now."""

    before: Footprint
    after: Footprint

    def to_dict(self) -> dict[str, Any]:
        """The figures for programs."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict()}


def compact(
    reference: Reference, *, opener: Opener | None = None, progress: Progress | None = None
) -> Compaction:
    """Give back, in place, what an image holds that is zeros, unused or lost. Contents stay.

    What a snapshot shares and what is compressed stays as it is. The image is checked first, and
    one that is damaged is refused with :class:`~imgtool.errors.CorruptImage`. Each step leaves a
    whole image behind, so it may be interrupted at any time.
    """
    opener = opener or Opener()
    _judge(reference, opener)
    with replace(opener, writable=True).reference(reference) as device:
        before = _footprint(device)
        _give_back_zeros(device, progress)
        device.trim()
        return Compaction(before, _footprint(device))


def compact_into(
    reference: Reference,
    target: str,
    *,
    compress: bool | None = None,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> Compaction:
    """Write an image like this one, and no larger than it need be, to ``target``.

    A file of that name, which may be the image itself, is replaced in one step when the new one is
    whole. ``compress`` is by default what the image is, if any of it is compressed. Raises
    :class:`~imgtool.errors.BadOption` for an image of which a part would be lost, and for a target
    that the image lies on, and :class:`~imgtool.errors.InUse` for a target that somebody writes to.
    """
    opener = replace(opener or Opener(), writable=False)
    with _replacing(target) as path:
        # The image stays open, so that nobody changes it between two looks at it.
        with opener.reference(reference) as device:
            if device.backing is not None:
                refuse_files_that_are_read(target, set(identities(device.backing)))
            before = _footprint(device)
            _write_new(device, reference, target, path, compress, opener, progress)
            form = device.format
        with replace(opener, follow=False).reference(Reference(path, form)) as made:
            after = _footprint(made)
    return Compaction(before, after)


def _judge(reference: Reference, opener: Opener) -> None:
    """Refuse an image that is damaged, and let go of clusters that are lost."""
    chosen = reference.format
    with replace(opener, follow=False, writable=False).reference(reference) as device:
        chosen = device.format
    if registry.find(chosen).load_checker() is None:
        return
    found = check(reference, opener=replace(opener, writable=False))
    if found.corruptions or found.check_errors:
        raise CorruptImage("It is damaged, and is compacted only once it is repaired").in_file(
            found.filename
        )
    if found.leaks:
        check(reference, opener=opener, repair="leaks")


def _footprint(device: BlockDevice) -> Footprint:
    files = [child for child in device.children.values() if isinstance(child, Storage)]
    return Footprint(
        sum(storage.allocated() for storage in files), sum(storage.size() for storage in files)
    )


# In place


def _give_back_zeros(device: BlockDevice, progress: Progress | None) -> None:
    unit = max(_BLOCK, device.limits.alignment)
    waiting: deque[tuple[Window, Future[Ranges]]] = deque()

    def settle() -> None:
        window, future = waiting.popleft()
        for start, end in future.result():
            device.reclaim(window.offset + start, min(end, window.length) - start)
        if progress is not None:
            progress(window.offset + window.length, device.size)

    with Workers() as workers:
        # Where the host file has holes is looked at in detail when it is read.
        extents = coalesce(extent._replace(hole=False) for extent in device.reclaimable())
        for window in windows(extents, device.size, max(2 << 20, unit)):
            waiting.append((window, workers.submit(_empty_units, device, window, unit)))
            if len(waiting) > _AHEAD:
                settle()
        while waiting:
            settle()
    if progress is not None:
        progress(device.size, device.size)


def _empty_units(device: BlockDevice, window: Window, unit: int) -> Ranges:
    """The units of a window that are held whole, and all zeros; ranges count from its beginning."""
    empty: Ranges = []
    for part in window.data:
        start = align_up(part.offset - window.offset, unit)
        end = part.end - window.offset
        end = align_up(end, unit) if part.end == device.size else align_down(end, unit)
        if start < end:
            nonzero = _nonzero(device, part.clip(window.offset + start, part.end), unit)
            shifted = [(start + low, start + high) for low, high in nonzero]
            empty += without([(start, end)], shifted)
    return joined(empty)


def _nonzero(device: BlockDevice, part: Extent, unit: int) -> Ranges:
    """The units of a part, which begins with one, that hold anything but zeros."""
    length = align_up(part.length, unit)
    if part.storage is None or part.host_offset is None:
        # It lies there otherwise than the guest sees it: encrypted.
        buffer = bytearray(length)
        device.read_into(part.offset, memoryview(buffer)[: part.length])
        return blocks.nonzero_ranges(buffer, length, unit)
    stored = [
        found for found in part.storage.ranges(part.host_offset, part.length) if found.is_data
    ]
    if not stored:
        return []
    buffer = bytearray(length)
    view = memoryview(buffer)
    for found in stored:
        start = found.offset - part.host_offset
        part.storage.read_into(found.offset, view[start : start + found.length])
    return blocks.nonzero_ranges(buffer, length, unit)


# Into a new file


def _write_new(
    device: BlockDevice,
    reference: Reference,
    target: str,
    path: str,
    compress: bool | None,
    opener: Opener,
    progress: Progress | None,
) -> None:
    """Write an image like ``device`` to ``path``; in the end it is called ``target``."""
    options, backing, backing_format = _likeness(device)
    if compress is None:
        compress = any(
            extent.kind is Kind.COMPRESSED and not extent.depth for extent in device.extents()
        )
    if backing is not None and not os.path.isabs(path_below := file_path(backing)):
        own, new = (os.path.realpath(os.path.dirname(p)) for p in (device.name, target))
        backing = backing if own == new else os.path.join(own, path_below)
    convert(
        [replace(reference, format=device.format)],
        Reference(path, device.format),
        format=device.format,
        options=options,
        compress=compress,
        backing=backing,
        backing_format=backing_format,
        bitmaps=bool(device.stored_bitmaps),
        opener=opener,
        target_cache="writeback",
        progress=progress,
    )


def _likeness(device: BlockDevice) -> tuple[dict[str, object], str | None, str | None]:
    """The options that make an image like this one, and its backing file's name and format."""
    if device.stored_snapshots:
        raise BadOption(
            "A new image would lack its internal snapshots: compact it in place",
            filename=device.name,
        )
    if "data-file" in device.children:
        raise BadOption(
            "Its data lies in a file of its own: compact it in place", filename=device.name
        )
    describer = registry.find(device.format).load_describer()
    described = None if describer is None else describer(device)
    if described is not None and described.encrypted:
        raise BadOption("It is encrypted: compact it in place", filename=device.name)
    backing = None if described is None else described.backing_filename
    backing_format = None if described is None else described.backing_format
    return dict(device.creation_options), backing, backing_format


@contextlib.contextmanager
def _replacing(target: str) -> Iterator[str]:
    """Give the path of a file beside ``target``, which takes its place if all goes well."""
    final = os.path.realpath(target)
    if os.path.exists(final) and not os.path.isfile(final):
        raise ImageError("It is not a regular file, and is not replaced", filename=target)
    directory, name = os.path.split(final)
    # A name may have as many bytes as it has only just enough of.
    path = os.path.join(directory, f".{name[:50]}.{secrets.token_hex(4)}.new")
    with contextlib.ExitStack() as stack:
        old: FileStorage | None = None
        if os.path.exists(final):
            # Nobody may write meanwhile to what is to go: its lock is kept until it is gone.
            old = stack.enter_context(FileStorage.open(final))
        try:
            if old is not None:
                # It may be less private than what it becomes only once it is whole.
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield path
            _judge_replaced(final, old, target)
            if old is not None:
                _take_after(path, final)
                if os.name == "nt":
                    old.close()  # which cannot replace open files, and has no such locks
            os.replace(path, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
    _sync_directory(directory)


def _judge_replaced(final: str, old: FileStorage | None, target: str) -> None:
    """Refuse to replace what has come to be there since ``old``, or nothing, was."""
    found = identity_of(final)
    if found is not None and found != (None if old is None else old.identity):
        raise ImageError("It is another file by now, and is not replaced", filename=target)


def _take_after(path: str, other: str) -> None:
    """Give a file the owner, as far as we may, and then the permissions of another."""
    with contextlib.suppress(OSError):
        status = os.stat(other)
        os.chown(path, status.st_uid, status.st_gid)
    shutil.copymode(other, path)


def _sync_directory(path: str) -> None:
    """Make a new name durable, where a directory can be flushed."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_DIRECTORIES:
            raise
