"""``convert`` as a whole: opens the sources, makes the target, copies, and cleans up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from imgtool import codecs, registry
from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice, StoredBitmap
from imgtool.errors import BadOption, ImageError
from imgtool.names import file_path
from imgtool.ops.bitmap import bitmaps_of
from imgtool.ops.convert.concat import ConcatDevice
from imgtool.ops.convert.engine import BLOCK, CopyEngine, CopyJob, Progress
from imgtool.ops.convert.space import check_free_space
from imgtool.ops.create import CreatePlan, begin, beside, plan_create
from imgtool.ops.identities import identities, refuse_files_that_are_read
from imgtool.secrets import Secrets
from imgtool.storage.base import Storage

_NO_COMPRESSION = "Compression and an external data file cannot be used at the same time"
_NO_ENCRYPTION = "Compression and encryption not supported at the same time"


def convert(
    sources: Sequence[Reference],
    target: Reference,
    *,
    format: str,
    options: Mapping[str, object] | None = None,
    part: Callable[[BlockDevice], BlockDevice] | None = None,
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
    share_blocks: bool = True,
    copy_offload: bool = False,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    check_space: bool = True,
    opener: Opener | None = None,
    target_secrets: Secrets | None = None,
    target_cache: str = "unsafe",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Copy ``sources``, one behind the other, into ``target``.

    A new image has the size of its sources, whatever ``options`` say. ``part`` is given the
    sources as one disk, and returns what is to be copied of it. ``create`` false writes into an
    image that exists and is at least as large, and leaves alone what lies behind the sources' end;
    ``target_is_zero`` then says that it reads as zeros. ``sparse_size`` (bytes, a multiple of 512)
    is the shortest run of zeros that is not written, 0 writes everything. Over a ``backing`` image
    only what differs from it is written. ``progress`` is called with bytes done and bytes in all.
    With ``share_blocks`` the target shares the sources' blocks instead of copying them, where the
    host's file system can; ``copy_offload`` lets the host copy everything that is mapped.
    ``bitmaps`` copies the persistent bitmaps of the one source as well; those that were not stored
    properly are refused, or left out with ``skip_broken_bitmaps``.
    The opener's password is the sources'; ``target_secrets`` are for the target, by default those
    of the opener that have an id.

    The target is not touched before the sources have been opened and it is known that it can be
    made. If anything goes wrong, a file that this call brought into being is removed.
    Raises :class:`ImageError` and ``OSError``.
    """
    if sparse_size < 0 or sparse_size % 512:
        raise BadOption(f"The sparse size {sparse_size} is not a multiple of 512")
    opening = replace(opener or Opener(), writable=False)
    making = replace(opening, secrets=target_secrets or opening.secrets._replace(password=None))
    chosen = registry.find(format)
    if compress and "compress" not in chosen.features:
        raise BadOption(f"Compression not supported for this file format ({chosen.name})")
    if copy_offload and compress:
        raise BadOption("Copy offloading and compression cannot be used at the same time")

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_sources(sources, opening))
        copied = _judge_bitmaps(source, skip_broken_bitmaps, warn or _ignore) if bitmaps else ()
        if part is not None:
            source = part(source)
        base, reserved = None, False
        if create:
            plan = plan_create(
                target.source,
                source.size,
                format=format,
                backing_file=backing,
                backing_format=backing_format,
                options={name: value for name, value in (options or {}).items() if name != "size"},
                opener=making,
            )
            if compress:
                _judge_compression(plan, compression_level)
            if plan.options.get("backing_file"):
                name = beside(plan.target, file_path(plan.options["backing_file"]))
                base = stack.enter_context(
                    opening.reference(Reference(name, plan.options["backing_fmt"]))
                )
            _refuse_files_in_use(plan, source, base)
            if check_space and not compress and not salvage:
                # What is to be salvaged may have no mapping to judge by.
                check_free_space(plan, source, base, allocate=sparse_size == 0)
            # What is reserved must not turn into blocks that somebody else has as well.
            reserved = plan.options.get("preallocation") in ("falloc", "full")
            image = stack.enter_context(begin(plan, backing=base, cache=target_cache))
            device, finish = image.device, image.finish
            zeroed = image.reads_zero and _reads_zero(device)
        else:
            device = stack.enter_context(
                _open_existing(target, format, source.size, making, target_cache)
            )
            zeroed, finish = False, device.flush
            if compress:
                _try_compression(device, compression_level)
        if bitmaps:
            _refuse_bitmaps(device, copied)
        if device.stores_zeros and not target_is_zero:
            # Every zero is written anyway, so threads may as well do it along with the data.
            sparse_size = 0
        job = CopyJob(
            source=source,
            target=device,
            base=base,
            zeroed=target_is_zero or zeroed,
            sparse_size=sparse_size,
            compress=compress,
            level=compression_level,
            share=share_blocks and not reserved,
            offload=copy_offload,
            salvage=salvage,
            rate_limit=rate_limit,
            workers=workers,
            progress=progress,
            warn=warn or _ignore,
        )
        CopyEngine(job).run()
        if copied:
            _copy_bitmaps(source, device, copied)
        finish()


def _judge_bitmaps(
    source: BlockDevice, skip_broken: bool, warn: Callable[[str], None]
) -> list[StoredBitmap]:
    """The bitmaps that are to be copied."""
    if isinstance(source, ConcatDevice):
        raise BadOption("Copying bitmaps only possible with single source")
    stored = source.stored_bitmaps
    if stored is None:
        raise BadOption("Source lacks bitmap support", filename=source.name)
    for bitmap in stored:
        if bitmap.inconsistent and not skip_broken:
            raise ImageError(
                f"Cannot copy inconsistent bitmap '{bitmap.name}': leave it out with "
                "--skip-broken-bitmaps, or use 'imgtool bitmap --remove' to delete it",
                filename=source.name,
            )
        if bitmap.inconsistent:
            warn(f"Skipping inconsistent bitmap '{bitmap.name}'")
    return [bitmap for bitmap in stored if not bitmap.inconsistent]


def _refuse_bitmaps(device: BlockDevice, copied: Sequence[StoredBitmap]) -> None:
    """Raise unless ``device`` can take these bitmaps."""
    if device.stored_bitmaps is None:
        raise BadOption(
            f"Format driver '{device.format}' does not support bitmaps", filename=device.name
        )
    there = {bitmap.name for bitmap in device.stored_bitmaps}
    for bitmap in copied:
        if bitmap.name in there:
            raise BadOption(
                f"Failed to create bitmap {bitmap.name}: Bitmap already exists: {bitmap.name}",
                filename=device.name,
            )


def _copy_bitmaps(source: BlockDevice, device: BlockDevice, copied: Sequence[StoredBitmap]) -> None:
    ours, theirs = bitmaps_of(device), bitmaps_of(source)
    for bitmap in copied:
        ours.add(bitmap.name, bitmap.granularity)
        ours.merge(bitmap.name, theirs.ranges(bitmap.name))
        ours.enable(bitmap.name, bitmap.enabled)


def _open_existing(
    target: Reference, format: str, size: int, opener: Opener, cache: str
) -> BlockDevice:
    """Open the target of ``-n`` for writing."""
    writing = replace(opener, writable=True, cache=cache)
    device = writing.reference(target if target.format else replace(target, format=format))
    try:
        _refuse_smaller(device.size, size, device.name)
    except ImageError:
        device.close()
        raise
    return device


def _refuse_smaller(target_size: int, size: int, name: str) -> None:
    if target_size < size:
        raise ImageError(
            f"The target is smaller ({target_size} bytes) than the source ({size} bytes)",
            filename=name,
        )


def _reads_zero(device: BlockDevice) -> bool:
    """Whether what is never written to a new image reads as zeros: not on a block device."""
    return not any(
        isinstance(child, Storage) and os.path.exists(child.name) and not os.path.isfile(child.name)
        for child in device.children.values()
    )


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


def _judge_compression(plan: CreatePlan, level: int | None) -> None:
    """Refuse, before a file is made, what the new image could not compress."""
    if plan.options.get("data_file") is not None:
        raise BadOption(_NO_COMPRESSION, filename=plan.name)
    if plan.options.get("encrypt.format") is not None or plan.options.get("encryption"):
        raise BadOption(_NO_ENCRYPTION, filename=plan.name)
    if level is not None:
        codecs.check_level(plan.options.get("compression_type", "zlib"), level)


def _try_compression(device: BlockDevice, level: int | None) -> None:
    """Refuse, before anything is written, what an existing image can't compress."""
    if not device.encoded_size:
        outside = "data-file" in device.children
        raise BadOption(_NO_COMPRESSION if outside else _NO_ENCRYPTION, filename=device.name)
    device.encode(bytes(device.encoded_size), level)


def _refuse_files_in_use(plan: CreatePlan, source: BlockDevice, base: BlockDevice | None) -> None:
    read = set(identities(source))
    if base is not None:
        read.update(identities(base))
    refuse_files_that_are_read(plan.target, read)
    if plan.options.get("data_file") is not None:
        refuse_files_that_are_read(beside(plan.target, plan.options["data_file"]), read)
