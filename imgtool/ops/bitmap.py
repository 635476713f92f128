"""Bitmap: add, remove, clear, enable, disable and merge persistent dirty bitmaps, and read them."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError
from imgtool.format import Bitmaps


class Change(enum.Enum):
    """What is done to a bitmap."""

    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


@dataclass(frozen=True)
class Action:
    """One change; ``source`` is the name of the bitmap that is merged."""

    change: Change
    source: str = ""


def change_bitmap(
    reference: Reference,
    name: str,
    actions: Sequence[Action],
    *,
    granularity: int | None = None,
    source: Reference | None = None,
    opener: Opener | None = None,
) -> None:
    """Carry out ``actions``, in order, on the bitmap called ``name``.

    ``granularity`` (bytes, a power of two) is that of a bitmap that is added. Bitmaps that are
    merged come from the image ``source``, or from the image itself. If an action fails, those
    before it stand. Raises :class:`ImageError`.
    """
    reading = replace(opener or Opener(), writable=False)
    # What the disk shows is not looked at.
    alone = replace(reference, children={**reference.children, "backing": None})
    with replace(reading, writable=True).reference(alone) as device:
        bitmaps = bitmaps_of(device)
        for action in actions:
            try:
                _carry_out(device, bitmaps, name, action, granularity, source, reading)
            except ImageError as error:
                filename = error.filename or device.name
                failed = error.within(f"Operation {action.change.value} on bitmap {name} failed")
                raise failed.in_file(filename) from error.__cause__


def _carry_out(
    device: BlockDevice,
    bitmaps: Bitmaps,
    name: str,
    action: Action,
    granularity: int | None,
    source: Reference | None,
    opener: Opener,
) -> None:
    if action.change is Change.ADD:
        bitmaps.add(name, granularity)
    elif action.change is Change.REMOVE:
        bitmaps.remove(name)
    elif action.change is Change.CLEAR:
        bitmaps.clear(name)
    elif action.change is Change.MERGE and source is None:
        bitmaps.merge(name, bitmaps.ranges(action.source))
    elif action.change is Change.MERGE and source is not None:
        with replace(opener, follow=False).reference(source) as other:
            if other.size != device.size:
                raise BadOption(
                    f"Bitmaps are of different sizes (destination size is {device.size}, source "
                    f"size is {other.size}) and can't be merged"
                )
            bitmaps.merge(name, bitmaps_of(other).ranges(action.source))
    else:
        bitmaps.enable(name, action.change is Change.ENABLE)


def bitmaps_of(device: BlockDevice) -> Bitmaps:
    """The persistent bitmaps of an open image; :class:`ImageError` if its format has none."""
    bitmapper = registry.find(device.format).load_bitmapper()
    if bitmapper is None:
        raise ImageError(
            f"Images of format '{device.format}' have no persistent bitmaps", filename=device.name
        )
    return bitmapper(device)


def dirty_ranges(
    reference: Reference, name: str, *, opener: Opener | None = None
) -> Iterator[tuple[int, int]]:
    """Give what the bitmap called ``name`` says is dirty: ``(offset, length)`` in bytes, in order.

    What a backup has to copy. No file but the image's own is opened.
    """
    with replace(opener or Opener(), follow=False).reference(reference) as device:
        yield from bitmaps_of(device).ranges(name)
