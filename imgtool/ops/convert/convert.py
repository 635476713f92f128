"""``convert`` as a whole: opens the sources, makes the target, copies, and cleans up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError
from imgtool.format import Format
from imgtool.ops.convert.concat import ConcatDevice
from imgtool.ops.convert.engine import BLOCK, CopyEngine, CopyJob, Progress
from imgtool.ops.convert.space import check_free_space
from imgtool.ops.making import Making
from imgtool.storage.base import Storage


def convert(
    sources: Sequence[Reference],
    target: Reference,
    *,
    format: str,
    options: Mapping[str, object] | None = None,
    compress: bool = False,
    compression_level: int | None = None,
    sparse_size: int = BLOCK,
    create: bool = True,
    target_is_zero: bool = False,
    backing: str | None = None,
    backing_format: str | None = None,
    workers: int | None = None,
    salvage: bool = False,
    rate_limit: int | None = None,
    copy_offload: bool = False,
    check_space: bool = True,
    opener: Opener | None = None,
    target_cache: str = "unsafe",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Copy ``sources``, one behind the other, into ``target``.

    ``create`` false writes into an image that exists and is at least as large; ``target_is_zero``
    then says that it reads as zeros. ``sparse_size`` (bytes, a multiple of 512) is the shortest
    run of zeros that is not written, 0 writes everything. Over a ``backing`` image only what
    differs from it is written. ``progress`` is called with bytes done and bytes in all.

    The target is not touched before the sources have been opened and it is known that it can be
    made. If anything goes wrong, a file that this call brought into being is removed.
    Raises :class:`ImageError` and ``OSError``.
    """
    if sparse_size < 0 or sparse_size % 512:
        raise BadOption(f"The sparse size {sparse_size} is not a multiple of 512")
    opening = replace(opener or Opener(), writable=False)
    chosen = registry.find(format)
    if compress and "compress" not in chosen.features:
        raise BadOption(f"Compression not supported for this file format ({chosen.name})")
    if copy_offload and compress:
        raise BadOption("Copy offloading and compression cannot be used at the same time")

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_sources(sources, opening))
        base = None
        made: Making | _Existing
        if create:
            settings = _settings(chosen, options or {}, backing, backing_format)
            path = _path(target)
            _refuse_own_source(source, path)
            base = _open_base(settings, path, opening)
            if base is not None:
                stack.enter_context(base)
            if check_space and not compress:
                check_free_space(path, chosen, source, base, settings, allocate=sparse_size == 0)
            made = Making(path, chosen, source.size, settings, backing=base, cache=target_cache)
        else:
            made = _Existing(target, format, source.size, opening, target_cache)
        stack.enter_context(made)
        if compress and not made.device.encoded_size:
            raise BadOption(
                "Compression and an external data file cannot be used at the same time",
                filename=made.device.name,
            )
        job = CopyJob(
            source=source,
            target=made.device,
            base=base,
            zeroed=target_is_zero or made.zeroed,
            sparse_size=sparse_size,
            compress=compress,
            level=compression_level,
            offload=copy_offload,
            salvage=salvage,
            rate_limit=rate_limit,
            workers=workers,
            progress=progress,
            warn=warn or _ignore,
        )
        CopyEngine(job).run()
        made.finish()


class _Existing:
    """A target that exists, for ``-n``; used like :class:`Making`."""

    zeroed = False

    def __init__(
        self, target: Reference, format: str, size: int, opener: Opener, cache: str
    ) -> None:
        writing = replace(opener, writable=True, cache=cache)
        self.device = writing.reference(target if target.format else replace(target, format=format))
        if self.device.size < size:
            self.device.close()
            raise ImageError(
                f"Target image '{self.device.name}' is smaller ({self.device.size} bytes) than "
                f"the source ({size} bytes)"
            )

    def finish(self) -> None:
        self.device.flush()

    def __enter__(self) -> _Existing:
        return self

    def __exit__(self, *exception: object) -> None:
        self.device.close()


def _ignore(text: str) -> None:
    return None


def _open_sources(sources: Sequence[Reference], opener: Opener) -> BlockDevice:
    if not sources:
        raise BadOption("There is no source image to convert")
    devices: list[BlockDevice] = []
    try:
        for reference in sources:
            devices.append(opener.reference(reference))
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices[0] if len(devices) == 1 else ConcatDevice(devices)


def _settings(
    chosen: Format,
    options: Mapping[str, object],
    backing: str | None,
    backing_format: str | None,
) -> dict[str, Any]:
    """The options of the new image, with ``-B`` and ``-F`` among them."""
    given = dict(options)
    if backing is not None:
        if given.get("backing_file") is not None:
            raise BadOption("The backing file must be specified only once")
        given["backing_file"] = backing
    if backing_format is not None:
        given["backing_fmt"] = backing_format
    if given.get("backing_file") is not None and "backing" not in chosen.features:
        raise BadOption(f"Backing file not supported for file format '{chosen.name}'")
    settings = chosen.create_options.check(given)
    if "size" in settings:
        raise BadOption("The size of a converted image is that of its source: leave it out")
    if settings.get("backing_file") and not settings.get("backing_fmt"):
        raise BadOption(
            "Backing file specified without backing format: give it with -F or backing_fmt"
        )
    return settings


def _path(target: Reference) -> str:
    if isinstance(target.source, (str, os.PathLike)):
        return os.fspath(target.source)
    raise BadOption("A new image is made in a file, so its target must be a path")


def _open_base(settings: Mapping[str, Any], path: str, opener: Opener) -> BlockDevice | None:
    """The image that the target will lie on, by the name that the target will know it by."""
    name = settings.get("backing_file")
    if not name:
        return None
    beside = name if os.path.isabs(name) else os.path.join(os.path.dirname(path), name)
    return opener.reference(Reference(beside, settings["backing_fmt"]))


def _refuse_own_source(source: BlockDevice, path: str) -> None:
    """Refuse to overwrite a file that is being read; locks alone would not see it with -U."""
    if not os.path.exists(path):
        return
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in set(_identities(source)):
        raise BadOption("The target is one of the source's own files", filename=path)


def _identities(device: BlockDevice) -> Iterator[object]:
    for child in device.children.values():
        if isinstance(child, Storage):
            if child.identity is not None:
                yield child.identity
        else:
            yield from _identities(child)
