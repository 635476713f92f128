"""Commit: put what an overlay holds into the image that it lies on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError
from imgtool.extent import Extent
from imgtool.names import same_file
from imgtool.ops.convert.engine import CopyEngine, CopyJob
from imgtool.ops.create import beside
from imgtool.ops.identities import identities
from imgtool.progress import Progress


def commit(
    reference: Reference,
    *,
    base: str | None = None,
    drop: bool = False,
    rate_limit: int | None = None,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> None:
    """Write what an image holds over its backing image into that one, and then empty the image.

    ``base`` is an image further down the chain, into which everything above it goes; then nothing
    is emptied, as with ``drop``. A base that is smaller grows. The images between, and others that
    lie on the base, show other contents afterwards. ``rate_limit`` is in bytes a second.

    The base has everything on disk before the image is emptied, so an interrupted commit can be
    repeated. Raises :class:`ImageError`.
    """
    opener = opener or Opener()
    depth, wanted = 1, None
    if base is not None:
        with replace(opener, writable=False).reference(reference) as device:
            depth = _find(device, base)
            wanted = _files(device, depth)
    emptied = base is None and not drop
    opening = replace(opener, writable=emptied, writable_depth=depth)
    with opening.reference(reference) as top:
        target = _below(top, depth)
        if target is None:
            raise ImageError("Image does not have a backing file", filename=top.name)
        if wanted is not None and wanted != _files(top, depth):
            # It has to be closed in between: for writing it is opened otherwise.
            raise ImageError("Its backing chain was changed by another just now", filename=top.name)
        if target.size < top.size:
            _grow(target, top.size)
        _zero(top, target, depth)
        CopyEngine(
            CopyJob(
                source=top,
                target=target,
                ranges=_held(top, depth),
                rate_limit=rate_limit,
                progress=progress,
            )
        ).run()
        target.flush()
        if emptied:
            top.make_empty()


def _find(device: BlockDevice, base: str) -> int:
    """How far down the chain the image called ``base`` lies: 1 is the nearest."""
    depth, above = 1, device
    while above.backing is not None:
        below = above.backing
        if base and (
            base == below.name
            or same_file(base, below.name)
            or same_file(beside(above.name, base), below.name)
        ):
            return depth
        depth, above = depth + 1, below
    raise BadOption(
        f"Did not find '{base}' in the backing chain of '{device.name}'", filename=device.name
    )


def _files(device: BlockDevice, depth: int) -> set[Hashable]:
    """What tells the files from others that the image ``depth`` below lies in."""
    below = _below(device, depth)
    return set() if below is None else set(identities(below))


def _below(device: BlockDevice | None, depth: int) -> BlockDevice | None:
    for _ in range(depth):
        device = None if device is None else device.backing
    return device


def _held(top: BlockDevice, depth: int) -> Iterator[Extent]:
    """What the images above ``depth`` hold as data."""
    for extent in top.extents():
        if extent.depth < depth and not extent.reads_zero:
            yield extent


def _grow(target: BlockDevice, size: int) -> None:
    """Make ``target`` longer, with zeros, as which an overlay shows what lies behind its end."""
    before = target.size
    target.resize(size)
    # An encrypted disk without a mapping shows what was never written as noise.
    _clear(target, before, size)


def _zero(top: BlockDevice, target: BlockDevice, depth: int) -> None:
    """Make zero in ``target`` what the images above ``depth`` know to be zeros.

    That goes for what they leave to an image between that is too short for it, too.
    """
    for extent in top.extents():
        if extent.depth < depth and extent.reads_zero:
            _clear(target, extent.offset, extent.end)


def _clear(target: BlockDevice, start: int, end: int) -> None:
    for extent in target.extents(start, end - start):
        if not extent.reads_zero:
            target.write_zeroes(extent.offset, extent.length, unmap=True)
