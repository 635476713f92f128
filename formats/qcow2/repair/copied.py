"""The COPIED flags of the active disk, set to what the refcounts say.

Source: the specification's section "Cluster mapping" (bit 63 of L1 and L2 entries).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imgtool.formats.qcow2.check.copied import judge
from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.l2 import L2Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.repair.tables import table_bytes
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK

if TYPE_CHECKING:
    from imgtool.findings import Findings

_COPIED = np.uint64(COPIED)
#: L1 entries that are looked at together.
_STEP = 1 << 17


def repair_copied(
    state: State, tables: L1Check, refcounts: RefcountCheck, findings: Findings
) -> None:
    """Correct every COPIED flag that contradicts its refcount, and report it.

    Nothing but the flags may be wrong in ``tables`` any more.
    """
    # A flag that is wrongly set lets a shared cluster be written to: those of the tables go first.
    for first in range(0, state.header.l1_size, _STEP):
        _repair_l1(state, refcounts, first, findings)
    reader, offsets = L2Check(state), tables.active_offsets
    for offset in offsets[state.hold_data(offsets)].tolist():
        _repair_table(state, refcounts, reader, offset, findings)
    state.storage.flush()


def _repair_l1(state: State, refcounts: RefcountCheck, first: int, findings: Findings) -> None:
    """Correct the entries of the active L1 table from ``first`` on, a step of them."""
    place = state.header.l1_table_offset + 8 * first
    words = state.read_table(place, min(_STEP, state.header.l1_size - first))
    named = np.flatnonzero(words & np.uint64(L1_OFFSET_MASK))
    offsets = (words[named] & np.uint64(L1_OFFSET_MASK)).astype(np.int64)
    found, wrong = judge(refcounts, words[named], offsets >> state.geometry.cluster_bits)
    if not wrong.any():
        return
    for number in np.flatnonzero(wrong).tolist():
        index = int(named[number])
        findings.corruption(
            f"Repairing OFLAG_COPIED L2 cluster: l1_index={first + index} "
            f"l1_entry={words[index]:x} refcount={found[number]}"
        )
        words[index] ^= _COPIED
    state.storage.write_at(place, table_bytes(words))


def _repair_table(
    state: State, refcounts: RefcountCheck, tables: L2Check, offset: int, findings: Findings
) -> None:
    table = state.read_table(offset, state.geometry.cluster_size // 8)
    entries = tables.entries(table)
    words = entries.entry[entries.mapped]
    if state.header.has_data_file:
        # An external data file has no refcounts: every cluster of it is used once.
        found = np.ones(len(words), np.uint64)
        wrong = (words & _COPIED) == 0
    else:
        hosts = entries.host[entries.mapped].astype(np.int64)
        found, wrong = judge(refcounts, words, hosts >> state.geometry.cluster_bits)
    if not wrong.any():
        return
    for number, place in enumerate(np.flatnonzero(wrong).tolist()):
        if not findings.listening:
            findings.untold_corruptions(int(np.count_nonzero(wrong)) - number)
            break
        findings.corruption(
            f"Repairing OFLAG_COPIED data cluster: l2_entry={words[place]:x} "
            f"refcount={found[place]}"
        )
    step = state.geometry.l2_entry_size // 8
    table[entries.position[entries.mapped][wrong] * step] ^= _COPIED
    state.storage.write_at(offset, table_bytes(table))
