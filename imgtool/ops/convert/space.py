"""Whether the host has room for what is about to be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.extent import Extent
from imgtool.ops.convert.plan import all_of, differing
from imgtool.ops.create import CreatePlan
from imgtool.units import format_size


def check_free_space(
    plan: CreatePlan, source: BlockDevice, base: BlockDevice | None, *, allocate: bool
) -> None:
    """Raise :class:`ImageError` with the figures if the image that is planned cannot fit.

    What it needs is what ``measure`` predicts; with ``allocate`` everything is written, zeros too.
    A file that is there counts as free, since it is overwritten. Block devices are not judged.
    """
    path = plan.target
    if not isinstance(path, str) or (os.path.exists(path) and not os.path.isfile(path)):
        return
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        return
    free = shutil.disk_usage(directory).free
    if os.path.isfile(path):
        status = os.stat(path)
        free += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    # Where there is room for everything, nobody need look at what is mapped.
    if _needed(plan, source, None, True) <= free:
        return
    needed = _needed(plan, source, base, allocate)
    if needed > free:
        raise ImageError(
            f"Not enough space: up to {format_size(needed)} ({needed} bytes) are needed and "
            f"{format_size(free)} ({free} bytes) are free; --no-space-check goes on all the same",
            filename=path,
        )


def _needed(plan: CreatePlan, source: BlockDevice, base: BlockDevice | None, allocate: bool) -> int:
    extents: Iterator[Extent]
    if allocate or plan.options.get("preallocation") in ("falloc", "full"):
        extents = all_of(source.size)
    elif base is not None:
        extents = differing(source, base)
    else:
        extents = source.kinds()
    measurer = plan.format.load_measurer()
    if measurer is None or plan.format.name == "raw":
        # A raw file is as long as its disk, but takes only what is written.
        return sum(extent.length for extent in extents if not extent.reads_zero)
    # How much an overlay shares with its backing image is known here, unlike to a measurer.
    options = {
        name: value
        for name, value in plan.options.items()
        if name not in ("backing_file", "backing_fmt")
    }
    return measurer(source.size, options, extents).required
