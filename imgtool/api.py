"""The functions of the package's public interface; ``imgtool.open`` and so on are these.

Each takes an image as a path, an open :class:`~imgtool.storage.base.Storage`, a binary file
object, or a :class:`~imgtool.chain.Reference` where more has to be said. Files that images name
are opened as the ``policy`` allows: without one, as ``IMGTOOL_TRUST`` in the environment says, and
else inside the directory of the image that names them. Each takes a ``budget`` but for
``inspect``, whose work is bounded: what is larger, or needs more memory or work, raises
:class:`~imgtool.errors.OverBudget`.

All raise :class:`~imgtool.errors.ImageError` for what is wrong with an image or a request, and
``OSError`` for what the host refuses. A ``password`` unlocks every encrypted image of the chain.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

from imgtool import registry
from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy, Reference, Source
from imgtool.secrets import Secret, Secrets
from imgtool.units import parse_size

if TYPE_CHECKING:
    from imgtool.description import SnapshotInfo
    from imgtool.device import BlockDevice
    from imgtool.extent import Extent
    from imgtool.format import Measurement
    from imgtool.inspection import Inspection
    from imgtool.ops.check import CheckReport
    from imgtool.ops.compact import Compaction
    from imgtool.ops.compare import Comparison
    from imgtool.ops.info import ImageInfo
    from imgtool.progress import Progress

Image = Source | Reference
Password = str | bytes | None


def open(
    source: Image,
    *,
    format: str | None = None,
    writable: bool = False,
    snapshot: str | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    cache: str = "writeback",
    **options: object,
) -> BlockDevice:
    """Open an image and what it lies on, as a :class:`~imgtool.device.BlockDevice`.

    ``format`` is probed if it is None, but a file that is only guessed to be raw is not opened
    ``writable``. ``snapshot`` is the id or name of an internal snapshot. ``share`` lets others
    write to the files meanwhile. ``cache`` is one of none, writeback, writethrough, directsync and
    unsafe. ``options`` are the format's own (raw: ``offset`` and ``size`` in bytes). ``password``
    unlocks every encrypted image of the chain.

    The device closes the files; a file object that was given stays open.
    """
    if snapshot is not None:
        options["snapshot"] = snapshot
    opener = _opener(
        policy, budget=budget, share=share, cache=cache, writable=writable, password=password
    )
    return opener.reference(_reference(source, format, options))


def create(
    target: Source,
    size: int | str | None = None,
    *,
    format: str | None = None,
    backing_file: str | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    **options: object,
) -> None:
    """Create an image of ``size`` bytes (or ``"10G"``), by default that of its backing image.

    ``format`` is by default the one that goes with the target's suffix, else raw.
    ``backing_file`` is relative to the target's directory, and must be an image of
    ``backing_format`` unless ``unsafe``. ``options`` are the format's: ``cluster_size="2M"``,
    ``preallocation="metadata"``, and so on. With a ``password`` the image is encrypted, with LUKS;
    qcow2's options for that have underscores for dots: ``encrypt_cipher_alg``.

    A file that exists is overwritten, but not before the request is known to be sound.
    """
    from imgtool.ops.create import create

    create(
        target,
        size,
        format=format or _format_for(target),
        backing_file=None if backing_file is None else os.fspath(backing_file),
        backing_format=backing_format,
        unsafe=unsafe,
        options=options,
        opener=_opener(policy, budget=budget, password=password),
    )


def info(
    source: Image,
    *,
    format: str | None = None,
    backing_chain: bool = False,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    **options: object,
) -> ImageInfo:
    """Describe an image from its metadata alone; with ``backing_chain``, those below it as well.

    Without ``backing_chain`` no file but the image's own is opened.
    """
    from imgtool.ops.info import info

    return info(
        _reference(source, format, options),
        opener=_opener(policy, budget=budget, share=share),
        backing_chain=backing_chain,
    )


def inspect(
    source: Source,
    *,
    format: str | None = None,
    max_virtual_size: int | str | None = None,
    accept: Collection[str] = (),
    share: bool = False,
) -> Inspection:
    """Say what a file from a stranger is, what it names, and whether it is safe to hand on.

    Only its structure is read, and no other file is opened. ``source`` may be a file object that
    can't seek: it is read to its end. ``format`` is what the file is said to be, anything else is
    unsafe then; ``max_virtual_size`` is the largest disk that is allowed, in bytes or as ``"10G"``;
    ``accept`` are codes of problems (docs/inspect.md) that are not to count. What is wrong with the
    file is in the result, not raised.
    """
    from imgtool.ops.inspect import inspect

    limit = None if max_virtual_size is None else parse_size(max_virtual_size)
    return inspect(
        source,
        format=format,
        max_virtual_size=limit,
        accept=accept,
        opener=_opener(None, share=share),
    )


def convert(
    source: Image | Sequence[Image],
    target: Image,
    *,
    format: str | None = None,
    source_format: str | None = None,
    snapshot: str | None = None,
    compress: bool | Literal["zlib", "zstd"] = False,
    compression_level: int | None = None,
    sparse_size: int = 4096,
    create: bool = True,
    target_is_zero: bool = False,
    backing_file: str | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    workers: int | None = None,
    salvage: bool = False,
    rate_limit: int | None = None,
    share_blocks: bool = True,
    copy_offload: bool = False,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    check_space: bool = True,
    password: Password = None,
    target_password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    cache: str = "writeback",
    target_cache: str = "writeback",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    **options: object,
) -> None:
    """Copy an image, or several one behind the other (a list), to ``target``.

    ``format`` is by default the one that goes with the target's suffix, else raw; ``options`` are
    that format's. ``compress`` may name the kind of compression. ``sparse_size`` is the shortest
    run of zeros, in bytes, that is left out; 0 writes everything.

    With ``create`` false the target is an image that exists, and its contents are overwritten;
    ``target_is_zero`` then says that they read as zeros. Over a ``backing_file`` only what differs
    from it is written. ``rate_limit`` is in bytes a second. ``salvage`` reads what can't be read
    as zeros, and tells ``warn``. ``bitmaps`` copies the persistent bitmaps as well: all of them, or
    with ``skip_broken_bitmaps`` those that can be relied on. ``progress`` is called with the bytes
    done and the bytes in all, on the caller's thread.

    Where the host's file system can, the target shares the blocks of what it does not compress with
    the sources; ``share_blocks`` false copies them. ``copy_offload`` lets the host copy, zeros too.

    ``password`` unlocks the sources; with ``target_password`` the target is encrypted, or unlocked
    if it exists.
    """
    from imgtool.ops.convert import convert

    several = source if isinstance(source, (list, tuple)) else [cast("Image", source)]
    extra: dict[str, object] = {} if snapshot is None else {"snapshot": snapshot}
    if isinstance(compress, str):
        options["compression_type"] = compress
    described = _reference(target, format, {})
    convert(
        [_reference(one, source_format, extra) for one in several],
        described,
        format=described.format or _format_for(described.source),
        options=options,
        compress=bool(compress),
        compression_level=compression_level,
        sparse_size=sparse_size,
        create=create,
        target_is_zero=target_is_zero,
        backing=None if backing_file is None else os.fspath(backing_file),
        backing_format=backing_format,
        workers=workers,
        salvage=salvage,
        rate_limit=rate_limit,
        share_blocks=share_blocks,
        copy_offload=copy_offload,
        bitmaps=bitmaps,
        skip_broken_bitmaps=skip_broken_bitmaps,
        check_space=check_space,
        opener=_opener(policy, budget=budget, share=share, cache=cache, password=password),
        target_secrets=Secrets(password=_secret(target_password)),
        target_cache=target_cache,
        progress=progress,
        warn=warn,
    )


def check(
    source: Image,
    *,
    format: str | None = None,
    budget: Budget | None = None,
    share: bool = False,
    report: Callable[[str], None] | None = None,
    repair: str | None = None,
    dry_run: bool = False,
    **options: object,
) -> CheckReport:
    """Check an image's metadata, and return what was found. No file but its own is opened.

    ``report`` is told each finding as it is made; without it the first thousand are kept in the
    report's ``messages``. ``repair`` is ``"leaks"`` or ``"all"``: then the report's counts are what
    is left, and ``leaks_fixed`` and ``corruptions_fixed`` what was repaired. With ``dry_run``
    nothing is written, the counts are what there is, and the others what would be repaired.
    Raises :class:`~imgtool.ops.check.NoChecks` for formats such as raw.
    """
    from imgtool.ops.check import check

    opener = _opener(None, budget=budget, share=share)
    return check(
        _reference(source, format, options),
        opener=opener,
        report=report,
        repair=repair,
        dry_run=dry_run,
    )


def compare(
    first: Image,
    second: Image,
    *,
    first_format: str | None = None,
    second_format: str | None = None,
    strict: bool = False,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare the contents of two disks, whatever formats and chains they lie in.

    What the larger has more must be zeros; with ``strict`` sizes and allocation must agree as well.
    ``password`` unlocks either; if they differ, give references with a ``Secret`` each.
    """
    from imgtool.ops.compare import compare

    return compare(
        _reference(first, first_format, {}),
        _reference(second, second_format, {}),
        strict=strict,
        opener=_opener(policy, budget=budget, share=share, password=password),
        progress=progress,
    )


def map(
    source: Image,
    *,
    format: str | None = None,
    start_offset: int = 0,
    max_length: int | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    **options: object,
) -> Iterator[Extent]:
    """Give the extents of an image and what it lies on: contiguous, in order, nothing missing.

    They cover ``max_length`` bytes from ``start_offset`` on. The image is open until the iterator
    is used up or closed.
    """
    from imgtool.ops.map import map_image

    return map_image(
        _reference(source, format, options),
        start_offset=start_offset,
        max_length=max_length,
        opener=_opener(policy, budget=budget, share=share, password=password),
    )


def measure(
    source: Image | None = None,
    *,
    size: int | str | None = None,
    format: str = "raw",
    source_format: str | None = None,
    snapshot: str | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    **options: object,
) -> Measurement:
    """Predict how large the file of a new image of ``format`` with these ``options`` will be.

    It is to hold what ``source`` holds, or to be empty and of ``size`` bytes (or ``"10G"``).
    """
    from imgtool.ops.measure import measure

    extra: dict[str, object] = {} if snapshot is None else {"snapshot": snapshot}
    return measure(
        None if source is None else _reference(source, source_format, extra),
        size=None if size is None else parse_size(size),
        format=format,
        options=options,
        opener=_opener(policy, budget=budget, share=share, password=password),
    )


def hash(
    source: Image,
    algorithm: str = "sha256",
    *,
    raw: bool = False,
    format: str | None = None,
    snapshot: str | None = None,
    workers: int | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    progress: Progress | None = None,
    **options: object,
) -> str:
    """Return a digest of what a disk holds, in hexadecimal: the same in every format.

    It is the tree hash that docs/hash.md defines, over ``sha256``, ``sha512`` or ``blake2b``. With
    ``raw`` it is the plain digest of the disk's bytes (``sha1`` and ``md5`` as well), for which
    every zero is hashed.
    """
    from imgtool.ops.hash import hash_image

    if snapshot is not None:
        options["snapshot"] = snapshot
    return hash_image(
        _reference(source, format, options),
        algorithm,
        raw=raw,
        workers=workers,
        opener=_opener(policy, budget=budget, share=share, password=password),
        progress=progress,
    )


def resize(
    source: Image,
    size: int | str,
    *,
    format: str | None = None,
    shrink: bool = False,
    preallocation: Literal["off", "metadata", "falloc", "full"] = "off",
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
) -> int:
    """Give a disk another virtual size, and return it in bytes.

    ``size`` is in bytes, or text such as ``"10G"``; ``"+1G"`` and ``"-512M"`` are relative to the
    size it has. Cutting something off needs ``shrink``. What is added reads as zeros;
    ``preallocation`` says what is done for it.
    """
    from imgtool.ops.resize import resize

    return resize(
        _reference(source, format, {}),
        size,
        shrink=shrink,
        preallocation=preallocation,
        opener=_opener(policy, budget=budget, password=password),
    )


def commit(
    source: Image,
    *,
    format: str | None = None,
    base: str | os.PathLike[str] | None = None,
    drop: bool = False,
    rate_limit: int | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    cache: str = "writeback",
    progress: Progress | None = None,
) -> None:
    """Write what an overlay holds into its backing image, and then empty the overlay.

    With ``base``, an image further down the chain, everything above it goes into that one, and
    nothing is emptied; with ``drop`` it is not, either. ``rate_limit`` is in bytes a second.
    """
    from imgtool.ops.commit import commit

    commit(
        _reference(source, format, {}),
        base=None if base is None else os.fspath(base),
        drop=drop,
        rate_limit=rate_limit,
        opener=_opener(policy, budget=budget, cache=cache, password=password),
        progress=progress,
    )


def compact(
    source: Image,
    target: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    compress: bool | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> Compaction:
    """Give the host back what an image holds that is zeros, unused or lost; return the figures.

    Without ``target`` that happens in place, and may be interrupted at any time. With it a new
    image like this one is written, which then takes the place of ``target``, in one step; there
    ``compress`` is by default whether any of the image is compressed.
    """
    from imgtool.ops.compact import compact, compact_into

    image = _reference(source, format, {})
    opener = _opener(policy, budget=budget, password=password)
    if target is None:
        return compact(image, opener=opener, progress=progress)
    return compact_into(
        image,
        os.fspath(target),
        compress=compress,
        opener=opener,
        progress=progress,
    )


def rebase(
    source: Image,
    backing_file: str | os.PathLike[str] | None,
    backing_format: str | None = None,
    *,
    format: str | None = None,
    unsafe: bool = False,
    compress: bool = False,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    share: bool = False,
    cache: str = "writeback",
    backing_cache: str = "writeback",
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Put an overlay on another backing file, or on none, with its contents unchanged.

    ``backing_file`` is relative to the overlay's directory and needs ``backing_format``. What it
    does not hold and the old one does is copied into the overlay first, with ``compress``
    compressed. ``unsafe`` only changes what is recorded. ``warn`` is told of internal snapshots,
    which show the new backing file from then on.
    """
    from imgtool.ops.rebase import rebase

    rebase(
        _reference(source, format, {}),
        None if backing_file is None else os.fspath(backing_file),
        backing_format,
        unsafe=unsafe,
        compress=compress,
        opener=_opener(policy, budget=budget, share=share, cache=cache, password=password),
        backing_cache=backing_cache,
        progress=progress,
        warn=warn or (lambda text: None),
    )


def snapshots(
    source: Image,
    *,
    format: str | None = None,
    budget: Budget | None = None,
    share: bool = False,
) -> list[SnapshotInfo]:
    """List the internal snapshots of an image; none where its format has none."""
    from imgtool.ops.snapshot import list_snapshots

    return list_snapshots(
        _reference(source, format, {}), opener=_opener(None, budget=budget, share=share)
    )


def amend(
    source: Image,
    *,
    format: str | None = None,
    password: Password = None,
    policy: OpenPolicy | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
    **options: object,
) -> None:
    """Change the options that an image was created with: ``compat="0.10"``, ``refcount_bits=8``."""
    from imgtool.ops.amend import amend

    amend(
        _reference(source, format, {}),
        options,
        opener=_opener(policy, budget=budget, password=password),
        progress=progress,
    )


def bitmap(
    source: Image,
    name: str,
    *changes: Literal["add", "remove", "clear", "enable", "disable"],
    merge: str | None = None,
    merge_from: Image | None = None,
    granularity: int | None = None,
    format: str | None = None,
    password: Password = None,
    budget: Budget | None = None,
) -> None:
    """Change the persistent dirty bitmap ``name``: the ``changes`` in order, then the merge.

    ``granularity`` is the bytes that one bit of an added bitmap stands for. ``merge`` is the name
    of a bitmap whose marks are taken over, in the image itself or in ``merge_from``.
    """
    from imgtool.ops.bitmap import Action, Change, change_bitmap

    actions = [Action(Change(change)) for change in changes]
    if merge is not None:
        actions.append(Action(Change.MERGE, merge))
    change_bitmap(
        _reference(source, format, {}),
        name,
        actions,
        granularity=granularity,
        source=None if merge_from is None else _reference(merge_from, None, {}),
        opener=_opener(None, budget=budget, password=password),
    )


def dirty_ranges(
    source: Image, name: str, *, format: str | None = None, budget: Budget | None = None
) -> Iterator[tuple[int, int]]:
    """What the bitmap ``name`` says is dirty: ``(offset, length)`` in bytes, in order."""
    from imgtool.ops.bitmap import dirty_ranges

    return dirty_ranges(_reference(source, format, {}), name, opener=_opener(None, budget=budget))


def create_snapshot(
    source: Image,
    name: str,
    *,
    format: str | None = None,
    password: Password = None,
    budget: Budget | None = None,
) -> None:
    """Keep the disk as it is now as an internal snapshot. Several may have the same name."""
    from imgtool.ops.snapshot import create_snapshot

    create_snapshot(
        _reference(source, format, {}),
        name,
        opener=_opener(None, budget=budget, password=password),
    )


def apply_snapshot(
    source: Image,
    snapshot: str,
    *,
    format: str | None = None,
    password: Password = None,
    budget: Budget | None = None,
) -> None:
    """Make the disk what it was when the internal snapshot with this id, or name, was taken."""
    from imgtool.ops.snapshot import apply_snapshot

    apply_snapshot(
        _reference(source, format, {}),
        snapshot,
        opener=_opener(None, budget=budget, password=password),
    )


def delete_snapshot(
    source: Image,
    name: str,
    *,
    format: str | None = None,
    password: Password = None,
    budget: Budget | None = None,
) -> None:
    """Remove the first internal snapshot of this name; what only it held becomes free."""
    from imgtool.ops.snapshot import delete_snapshot

    delete_snapshot(
        _reference(source, format, {}),
        name,
        opener=_opener(None, budget=budget, password=password),
    )


def _reference(source: Image, format: str | None, options: dict[str, object]) -> Reference:
    if not isinstance(source, Reference):
        return Reference(source, format, options)
    if format is None and not options:
        return source
    return Reference(
        source.source, format or source.format, {**source.options, **options}, source.children
    )


def _opener(
    policy: OpenPolicy | None,
    *,
    budget: Budget | None = None,
    share: bool = False,
    cache: str = "writeback",
    writable: bool = False,
    password: Password = None,
) -> Opener:
    return Opener(
        policy=policy or OpenPolicy.default(),
        budget=budget or Budget(),
        share=share,
        cache=cache,
        writable=writable,
        secrets=Secrets(password=_secret(password)),
    )


def _secret(password: Password) -> Secret | None:
    return None if password is None else Secret(password)


def _format_for(target: object) -> str:
    """The format that goes with a target's suffix, else raw."""
    name = getattr(target, "name", target)
    found = registry.for_suffix(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else None
    return "raw" if found is None else found.name
