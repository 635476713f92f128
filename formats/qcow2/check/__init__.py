"""Checking qcow2 images: what refers to which host cluster, against what the refcounts say.

The order in which findings are made, and their words, are those of ``qemu-img check``.
"""

from __future__ import annotations

from collections.abc import Callable

from imgtool.device import BlockDevice
from imgtool.findings import CheckResult, Findings
from imgtool.formats.qcow2.check.copied import check_copied
from imgtool.formats.qcow2.check.survey import count_references, count_structures, new_state
from imgtool.formats.qcow2.driver import Qcow2Device


def check(device: BlockDevice, report: Callable[[str], None] | None = None) -> CheckResult:
    """Check an open qcow2 image; see :class:`imgtool.format.Check`."""
    assert isinstance(device, Qcow2Device)
    result = CheckResult()
    state = new_state(device.storage, device.header, Findings(result, report))
    tables = count_references(state, device.snapshots, device.bitmaps)
    refcounts = count_structures(state)
    refcounts.compare()
    if refcounts.copied_wrong or tables.copied_unclear:
        check_copied(state, refcounts)
    return result
