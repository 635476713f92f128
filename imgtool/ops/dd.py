"""dd: copy a range of blocks of a disk into a new image."""

from __future__ import annotations

from collections.abc import Callable

from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.ops.convert import convert
from imgtool.ops.convert.part import PartDevice


def dd(
    source: Reference,
    target: Reference,
    *,
    format: str = "raw",
    block_size: int = 512,
    count: int | None = None,
    skip: int = 0,
    iseek: int = 0,
    isize: int | None = None,
    opener: Opener | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Copy blocks of ``block_size`` bytes of ``source`` into a new image, ``target``.

    ``isize`` counts only so many bytes of the source. ``iseek`` blocks are left out, and then
    ``count`` blocks are copied, by default all. ``skip`` blocks are left out as well, but they are
    among the ``count``: qemu-img's way. ``warn`` is told if nothing is left for ``skip``.

    The copying is ``convert``'s, whatever the block size. Raises :class:`ImageError`, and
    ``OSError``.
    """

    def part(whole: BlockDevice) -> BlockDevice:
        size = whole.size if isize is None else min(whole.size, isize)
        start = min(iseek * block_size, size)
        end = size if count is None else min(size, start + count * block_size)
        if start + skip * block_size > end and warn is not None:
            warn("cannot skip to specified offset")
        start = min(start + skip * block_size, end)
        return PartDevice(whole, start, end - start)

    convert(
        [source],
        target,
        format=format,
        part=part,
        check_space=False,
        opener=opener,
        target_cache="writeback",
    )
