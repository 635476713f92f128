"""How large the file of a LUKS volume will be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgtool.crypto.luks_header import slot_offsets
from imgtool.crypto.luks_options import VolumeOptions
from imgtool.device import StoredBitmap
from imgtool.extent import Extent
from imgtool.format import Measurement
from imgtool.storage.encrypted import SECTOR
from imgtool.units import align_up


def measure(
    size: int,
    options: Mapping[str, Any],
    extents: Iterable[Extent] | None,
    bitmaps: Sequence[StoredBitmap] | None = None,
) -> Measurement:
    """The disk, whatever is allocated, and in front of it the header with its key material."""
    length = slot_offsets(VolumeOptions.from_mapping(options).spec)[-1] + align_up(size, SECTOR)
    return Measurement(required=length, fully_allocated=length)
