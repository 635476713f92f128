"""How large a raw file will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgtool.device import StoredBitmap
from imgtool.extent import Extent
from imgtool.format import Measurement
from imgtool.formats.raw.driver import SECTOR
from imgtool.units import align_up


def measure(
    size: int,
    options: Mapping[str, Any],
    extents: Iterable[Extent] | None,
    bitmaps: Sequence[StoredBitmap] | None = None,
) -> Measurement:
    """A raw file is as long as its disk, whatever is allocated."""
    length = align_up(size, SECTOR)
    return Measurement(required=length, fully_allocated=length)
