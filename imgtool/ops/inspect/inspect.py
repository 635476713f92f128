"""Inspecting a file, a storage, or a file object, which need not be able to seek."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection
from dataclasses import replace
from typing import IO, cast

from imgtool.chain import Opener, Source, storage_for
from imgtool.errors import ImageError
from imgtool.inspection import Inspection, NotSeen, Region
from imgtool.ops.inspect.session import Session
from imgtool.ops.inspect.stream import Inspector
from imgtool.ops.inspect.tasks import Task
from imgtool.storage.base import Storage

_CHUNK = 1 << 20


def inspect(
    source: Source,
    *,
    format: str | None = None,
    max_virtual_size: int | None = None,
    accept: Collection[str] = (),
    opener: Opener | None = None,
) -> Inspection:
    """Inspect a file, of which the structure alone is read; no other file is opened.

    A file object that can't seek is read to its end, or as far as it may yet be of ``format`` and
    no larger than ``max_virtual_size``; it must wait for what is still to come, else
    that is a ``BlockingIOError``. A storage, or a file object, stays open.
    ``format``, ``max_virtual_size`` (bytes) and ``accept`` are those of :class:`Inspector`. Raises
    ``OSError`` if it can't be read, and :class:`~imgtool.errors.ImageError` if it can't be opened;
    what is wrong with its contents is in the result.
    """
    if not isinstance(source, (str, os.PathLike, Storage)):
        _refuse_endless(source)
        if not _seeks(source):
            name = getattr(source, "name", None)
            inspector = Inspector(
                filename=name if isinstance(name, str) else "<stream>",
                format=format,
                max_virtual_size=max_virtual_size,
                accept=accept,
            )
            while chunk := _read(source, inspector.filename):
                if inspector.unmet:
                    # Whoever sends it may never end.
                    return inspector.finish(ended=False)
                inspector.feed(chunk)
            return inspector.finish()
    session = Session(format=format, max_virtual_size=max_virtual_size, accept=accept)
    # No name is followed, so not even the directory is held open.
    storage = storage_for(source, replace(opener or Opener(), follow=False))
    try:
        size = storage.size()
        _run(session, storage, size)
        return session.result(storage.name, size)
    finally:
        if storage is not source:
            storage.close()


def _read(file: IO[bytes], name: str) -> bytes:
    """The next bytes of a stream; none at its end."""
    chunk = cast("bytes | None", file.read(_CHUNK))
    if chunk is None:
        # A pause is not the end: what is still to come might be what is unsafe.
        raise BlockingIOError(errno.EAGAIN, "it is set not to wait for what is to come", name)
    return chunk


def _refuse_endless(file: IO[bytes]) -> None:
    """Raise :class:`ImageError` for character devices, which can seek and have no end."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):
        return
    if stat.S_ISCHR(status.st_mode) and not os.isatty(file.fileno()):
        name = getattr(file, "name", None)
        raise ImageError(
            "It is a character device, not a disk image",
            filename=name if isinstance(name, str) else None,
        )


def _seeks(file: IO[bytes]) -> bool:
    if isinstance(cast(object, file), io.TextIOBase):
        raise TypeError("an image is read from a file object opened in binary mode")
    ask = getattr(file, "seekable", None)
    return bool(ask()) if ask is not None else hasattr(file, "seek")


def _run(session: Session, storage: Storage, size: int) -> None:
    """Take every task to its end."""
    while (task := session.tasks.next()) is not None:
        _finish(session, task, storage, size)


def _finish(session: Session, task: Task, storage: Storage, size: int) -> None:
    request = session.tasks.step(task)
    while request is not None:
        answer: bytes | int | None = size
        missing = None
        if isinstance(request, Region):
            length = max(0, min(request.length, size - request.offset))
            try:
                answer = storage.read_at(request.offset, length) if length else b""
            except OSError as error:
                # Where a sector is bad the rest can still be judged.
                missing = NotSeen(request, error.strerror or "it can't be read")
        request = session.tasks.step(task, None if missing else answer, missing)
