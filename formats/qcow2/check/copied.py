"""The COPIED flags of the active disk, one by one: set exactly where the refcount is 1.

This second walk is only taken where the first one has seen that some flag may be wrong.

Source: the specification's section "Cluster mapping" (bit 63 of L1 and L2 entries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.l1 import TableBudget
from imgtool.formats.qcow2.check.l2 import L2Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COPIED = np.uint64(COPIED)
#: L1 entries that are looked at together.
_STEP = 1 << 17


def check_copied(state: State, refcounts: RefcountCheck) -> None:
    """Report every COPIED flag that contradicts its refcount."""
    header = state.header
    held = max(0, min(header.l1_size, (state.file_size - header.l1_table_offset) // 8))
    words = state.read_table(header.l1_table_offset, held)
    offsets = (words & np.uint64(L1_OFFSET_MASK)).astype(np.int64)
    # A table is read once, however often it is named; what is wrong in it is so each time.
    places, counts = np.unique(offsets, return_index=True, return_counts=True)[1:]
    times = np.zeros(held, np.int64)
    times[places] = counts
    times[(offsets == 0) | (offsets >= state.file_size) | ~state.hold_data(offsets)] = 0
    tables, budget = L2Check(state), TableBudget(state)
    for start in range(0, held, _STEP):
        part = slice(start, start + _STEP)
        found, wrong = judge(refcounts, words[part], offsets[part] >> state.geometry.cluster_bits)
        wrong &= offsets[part] != 0
        if not state.findings.listening:
            state.findings.untold_corruptions(int(np.count_nonzero(wrong)))
            wrong[:] = False
        for index in np.flatnonzero(wrong | (times[part] != 0)).tolist():
            place = start + index
            if wrong[index]:
                state.findings.corruption(
                    f"ERROR OFLAG_COPIED L2 cluster: l1_index={place} "
                    f"l1_entry={words[place]:x} refcount={found[index]}"
                )
            if times[place] and budget.allows(int(offsets[place])):
                _check_table(state, refcounts, tables, int(offsets[place]), int(times[place]))


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
