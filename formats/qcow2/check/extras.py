"""Snapshot and bitmap structures as far as a check judges them.

Source: the specification's sections "Snapshots" and "Bitmaps".
"""

from __future__ import annotations

import numpy as np

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.check.ranges import overlaid
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.header import Header, os_bytes
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.units import align_up

#: With version 3 every snapshot says how large its VM state and its disk are.
_EXTRA_DATA_V3 = 16
_RESERVED = np.uint64(0xFF000000000001FE)
_OFFSET = np.uint64(schema.BITMAP_OFFSET_MASK)
_ALL_ONES = np.uint64(1)
_STEP = 1 << 17


def check_snapshot_entries(state: State, snapshots: list[Snapshot]) -> int:
    """Report entries that lack what they must have; return the length of their table in bytes."""
    end = 0
    for number, snapshot in enumerate(snapshots):
        if lacks_extra_data(state.header, snapshot):
            state.findings.corruption(f"ERROR snapshot table entry {number} is incomplete")
        names = len(os_bytes(snapshot.id)) + len(os_bytes(snapshot.name))
        start = align_up(end, 8)
        end = start + schema.SNAPSHOT_HEAD.sizeof() + len(snapshot.extra_data) + names
    return end


def lacks_extra_data(header: Header, snapshot: Snapshot) -> bool:
    """Whether an entry of the snapshot table is shorter than the image's version asks for."""
    return header.version >= 3 and len(snapshot.extra_data) < _EXTRA_DATA_V3


def count_bitmaps(state: State, bitmaps: list[Bitmap]) -> None:
    """Count the clusters of the bitmap directory, of the bitmaps' tables and of their data.

    Raises :class:`CorruptImage` for an entry of a table that cannot be.
    """
    extension = state.header.bitmaps
    if extension is None:
        return
    state.count(extension.directory_offset, extension.directory_size)
    tables = [(bitmap.table_offset, bitmap.table_size * 8) for bitmap in bitmaps]
    for table in tables:
        state.count(*table)
    held = state.file_size
    inside = [(offset, min(length, held - offset)) for offset, length in tables]
    for offset, length, weight, _ in overlaid(inside):
        for start in range(offset, offset + length, 8 * _STEP):
            _count_entries(state, start, min(_STEP, (offset + length - start) // 8), weight)


def _count_entries(state: State, offset: int, count: int, weight: int) -> None:
    words = state.read_table(offset, count)
    hosts = words & _OFFSET
    unaligned = (hosts & np.uint64(state.geometry.cluster_size - 1)) != 0
    contradicting = (hosts != 0) & ((words & _ALL_ONES) != 0)
    if bool((((words & _RESERVED) != 0) | unaligned | contradicting).any()):
        raise CorruptImage("A bitmap table has an invalid entry", offset)
    there = hosts[hosts != 0]
    inside = there < np.uint64(state.file_size)
    clusters = (there[inside] >> np.uint64(state.geometry.cluster_bits)).astype(np.int64)
    state.tally.add(clusters, weight)
    for host in there[~inside].tolist():
        state.past_end(host, state.geometry.cluster_size, weight)
