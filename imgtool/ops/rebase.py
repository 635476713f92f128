"""Rebase: put an overlay on another backing image, or on none, with its contents unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError
from imgtool.extent import Extent, Kind
from imgtool.names import file_path, same_file
from imgtool.ops.convert.engine import CopyEngine, CopyJob
from imgtool.ops.convert.plan import differing
from imgtool.ops.create import beside, check_backing_format
from imgtool.progress import Progress
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage


def rebase(
    reference: Reference,
    backing: str | None,
    backing_format: str | None = None,
    *,
    unsafe: bool = False,
    compress: bool = False,
    opener: Opener | None = None,
    backing_cache: str = "writeback",
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Let an image lie on ``backing`` (a name relative to its directory), or on nothing.

    What the old backing image shows and the new one does not is copied into the image first, so
    that its contents stay; with ``compress`` compressed. ``unsafe`` copies nothing and opens
    neither backing image: it is for one that has moved. The header changes last: an interrupted
    rebase leaves the image on its old backing image, with the same contents.

    Internal snapshots are not looked at: they show the new backing image, and ``warn`` is told so.
    """
    opener = replace(opener or Opener(), writable=True)
    name = backing or None
    with contextlib.ExitStack() as stack:
        alone = replace(reference, children={**reference.children, "backing": None})
        device = stack.enter_context(opener.reference(alone if unsafe else reference))
        path = None
        if name is not None:
            path = _judge(device, name, backing_format)
        if compress and not device.encoded_size:
            raise BadOption(
                f"Compression not supported for this file format ({device.format})",
                filename=device.name,
            )
        if not unsafe:
            reading = replace(opener, writable=False, cache=backing_cache)
            below = stack.enter_context(_open_new(device, path, backing_format, reading))
            _keep_contents(device, below, compress, progress)
        if device.stored_snapshots:
            warn("the image's internal snapshots show the new backing file from now on")
        device.change_backing(name, backing_format)


def _judge(device: BlockDevice, name: str, backing_format: str | None) -> str:
    """The path of the new backing file, if an image may record it."""
    if backing_format is None:
        raise BadOption(
            f"Could not change the backing file to '{name}': backing format must be specified",
            filename=device.name,
        )
    check_backing_format(backing_format)
    path = beside(_file(device), file_path(name))
    if same_file(path, device.name):
        raise BadOption("An image cannot be its own backing file", filename=device.name)
    return path


def _open_new(
    device: BlockDevice, path: str | None, backing_format: str | None, opener: Opener
) -> BlockDevice:
    if path is None:
        return opener.reference(Reference(MemoryStorage(), "raw"))
    below = replace(opener, trail=(_file(device).identity or object(),))
    try:
        return below.reference(Reference(path, backing_format))
    except OSError as error:
        raise ImageError(
            f"Could not open new backing file '{path}': {error.strerror}", filename=device.name
        ) from error


def _file(device: BlockDevice) -> Storage:
    storage = device.children["file"]
    assert isinstance(storage, Storage)
    return storage


def _keep_contents(
    device: BlockDevice, below: BlockDevice, compress: bool, progress: Progress | None
) -> None:
    """Copy into ``device`` what it shows of its backing image and ``below`` does not have."""
    device.expect_other_backing()
    CopyEngine(
        CopyJob(
            source=device,
            target=device,
            base=below,
            ranges=differing(device, below, _not_held(device)),
            compress=compress,
            progress=progress,
        )
    ).run()


def _not_held(device: BlockDevice) -> Iterator[Extent]:
    """What an image leaves to its backing image."""
    for extent in device.extents():
        if extent.depth or extent.kind is Kind.UNALLOCATED:
            yield extent
