"""Counting every reference to a host cluster that an image makes."""

from __future__ import annotations

from imgtool.findings import Findings
from imgtool.formats.qcow2.bitmaps import Bitmap
from imgtool.formats.qcow2.check.extras import check_snapshot_entries, count_bitmaps
from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import Charges, State
from imgtool.formats.qcow2.check.tally import new_tally
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.storage.base import Storage
from imgtool.units import align_down, align_up

_SECTOR = 512


def new_state(storage: Storage, header: Header, findings: Findings) -> State:
    """Begin to count what the image in ``storage`` refers to."""
    geometry = header.geometry
    file_size = align_up(storage.size(), _SECTOR)
    # A guest sees whole sectors.
    findings.result.total_clusters = geometry.clusters(align_down(header.size, _SECTOR))
    # A structure may end less than a cluster past the end of the file.
    clusters = geometry.clusters(file_size) + 1
    charge = Charges(storage)
    tally = new_tally(clusters, charge.stored, room=charge.room, charge=charge)
    return State(storage, header, tally, findings, file_size, charge)


def count_references(state: State, snapshots: list[Snapshot], bitmaps: list[Bitmap]) -> L1Check:
    """Count all references but those of the refcount structures, and report what is wrong."""
    header = state.header
    table_size = check_snapshot_entries(state, snapshots)
    state.count(0, state.geometry.cluster_size)
    if header.luks_header is not None:
        state.count(*header.luks_header)
    tables = L1Check(state)
    tables.walk(snapshots)
    state.count(header.snapshots_offset, table_size)
    count_bitmaps(state, bitmaps)
    return tables


def count_structures(state: State) -> RefcountCheck:
    """Count the refcount table and its blocks, and report what is wrong with them."""
    header = state.header
    table_size = header.refcount_table_clusters * state.geometry.cluster_size
    state.count(header.refcount_table_offset, table_size)
    refcounts = RefcountCheck(state)
    refcounts.count_blocks()
    refcounts.report_overflows()
    return refcounts
