"""The COPIED flags of the active disk, one by one: set exactly where the refcount is 1.

This second walk is only taken where the first one has seen that some flag may be wrong.

Source: the specification's section "Cluster mapping" (bit 63 of L1 and L2 entries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.l2 import L2Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COPIED = np.uint64(COPIED)


def check_copied(state: State, refcounts: RefcountCheck) -> None:
    """Report every COPIED flag that contradicts its refcount."""
    header, bits = state.header, state.geometry.cluster_bits
    held = max(0, min(header.l1_size, (state.file_size - header.l1_table_offset) // 8))
    words = state.read_table(header.l1_table_offset, held)
    indexes = np.flatnonzero(words & np.uint64(L1_OFFSET_MASK))
    words = words[indexes]
    offsets = (words & np.uint64(L1_OFFSET_MASK)).astype(np.int64)
    found, wrong = judge(refcounts, words, offsets >> bits)
    # A table is read once, however often it is named; what is wrong in it is so each time.
    places, counts = np.unique(offsets, return_index=True, return_counts=True)[1:]
    times = dict(zip(places.tolist(), counts.tolist(), strict=True))
    tables = L2Check(state)
    unaligned_bytes = state.file_size
    for place in range(len(words)):
        if wrong[place]:
            state.findings.corruption(
                f"ERROR OFLAG_COPIED L2 cluster: l1_index={indexes[place]} "
                f"l1_entry={words[place]:x} refcount={found[place]}"
            )
        offset = int(offsets[place])
        if place not in times or offset >= state.file_size:
            continue
        if offset % state.geometry.cluster_size:
            if unaligned_bytes <= 0:
                continue
            unaligned_bytes -= state.geometry.cluster_size
        _check_table(state, refcounts, tables, offset, times[place])


def _check_table(
    state: State, refcounts: RefcountCheck, tables: L2Check, offset: int, weight: int
) -> None:
    entries = tables.entries(state.read_table(offset, state.geometry.cluster_size // 8))
    words = entries.entry[entries.mapped]
    if state.header.has_data_file:
        # An external data file has no refcounts: every cluster of it is used once.
        found = np.ones(len(words), np.uint64)
        wrong = (words & _COPIED) == 0
    else:
        hosts = entries.host[entries.mapped].astype(np.int64)
        found, wrong = judge(refcounts, words, hosts >> state.geometry.cluster_bits)
    findings = state.findings
    for number, place in enumerate(np.flatnonzero(wrong).tolist()):
        if not findings.listening:
            findings.untold_corruptions(weight * (int(np.count_nonzero(wrong)) - number))
            return
        findings.corruption(
            f"ERROR OFLAG_COPIED data cluster: l2_entry={words[place]:x} refcount={found[place]}",
            weight,
        )


def judge(
    refcounts: RefcountCheck, words: NDArray[np.uint64], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The refcounts of what entries name, and which flags contradict them."""
    found, known = refcounts.look_up(clusters)
    return found, known & (((words & _COPIED) != 0) != (found == 1))
