"""Checking qcow2 images: what refers to which host cluster, against what the refcounts say.

The order in which findings are made, and their words, are those of ``qemu-img check``.
"""

from __future__ import annotations

from collections.abc import Callable

from imgtool.device import BlockDevice
from imgtool.findings import Findings
from imgtool.format import CheckResult
from imgtool.formats.qcow2.check.copied import check_copied
from imgtool.formats.qcow2.check.extras import check_snapshot_entries, count_bitmaps
from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.check.tally import new_tally
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.units import align_down, align_up

_SECTOR = 512


def check(device: BlockDevice, report: Callable[[str], None] | None = None) -> CheckResult:
    """Check an open qcow2 image; see :class:`imgtool.format.Check`."""
    assert isinstance(device, Qcow2Device)
    storage, header = device.storage, device.header
    geometry = header.geometry
    file_size = align_up(storage.size(), _SECTOR)
    # A guest sees whole sectors.
    result = CheckResult(total_clusters=geometry.clusters(align_down(header.size, _SECTOR)))
    state = State(
        storage,
        header,
        # A structure may end less than a cluster past the end of the file.
        new_tally(geometry.clusters(file_size) + 1, storage.allocated()),
        Findings(result, report),
        file_size,
    )
    snapshots = device.snapshots
    table_size = check_snapshot_entries(state, snapshots)
    state.count(0, geometry.cluster_size)
    if header.luks_header is not None:
        state.count(*header.luks_header)
    tables = L1Check(state)
    tables.walk(snapshots)
    state.count(header.snapshots_offset, table_size)
    count_bitmaps(state, device.bitmaps)
    state.count(
        header.refcount_table_offset, header.refcount_table_clusters * geometry.cluster_size
    )
    refcounts = RefcountCheck(state)
    refcounts.count_blocks()
    refcounts.report_overflows()
    refcounts.compare()
    if refcounts.copied_wrong or tables.copied_unclear:
        check_copied(state, refcounts)
    return result
