"""What the active L1 table and the refcount table lead to."""

from __future__ import annotations

from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.inspect.layout import Layout
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.inspection import Notes, Steps
from imgtool.inspection.tables import Pointers, scan

_ALL = (1 << 64) - 1


def scan_l1(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the active L1 table: where its L2 tables are, and that none is used twice."""
    length = header.l1_size * 8
    pointers = _pointers(header, "An L2 table", L1_OFFSET_MASK, COPIED)
    return scan(
        notes, header.l1_table_offset, length, "The active L1 table", pointers, layout.fixed
    )


def scan_refcount_table(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the refcount table: where its refcount blocks are, and that none is used twice."""
    length = header.refcount_table_clusters * header.geometry.cluster_size
    pointers = _pointers(header, "A refcount block", REFCOUNT_OFFSET_MASK, 0)
    return scan(
        notes, header.refcount_table_offset, length, "The refcount table", pointers, layout.fixed
    )


def _pointers(header: Header, what: str, mask: int, flags: int) -> Pointers:
    cluster_size = header.geometry.cluster_size
    return Pointers(
        what,
        "table",
        8,
        "big",
        length=cluster_size,
        unused=frozenset((0, flags)),
        mask=mask,
        alignment=cluster_size,
        reserved=_ALL & ~(mask | flags),
    )
