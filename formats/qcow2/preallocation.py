"""Recognising images whose clusters are allocated in the tables and not in the host file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.refcounts import blocks

if TYPE_CHECKING:
    from imgtool.formats.qcow2.driver import Qcow2Device


def metadata_only(device: Qcow2Device) -> bool:
    """Whether the host file holds clearly less than the refcounts say is in use.

    Then clusters that are mapped as data may be holes, which is worth asking the host about. The
    threshold, a ninth or two clusters over what is stored, is where qemu-img map begins to ask.
    Of an image with an external data file only the file with the metadata counts, there as here.
    """
    storage, geometry = device.storage, device.header.geometry
    stored = storage.allocated() // geometry.cluster_size
    threshold = max(stored * 10 // 9, stored + 2)
    last = geometry.clusters(storage.size())
    if last < threshold:
        return False
    import numpy as np

    used = 0
    try:
        for first, refcounts in blocks(storage, device.header):
            if first >= last:
                break
            used += int(np.count_nonzero(refcounts[: last - first]))
            if used >= threshold:
                return True
    except CorruptImage:
        return False
    return False
