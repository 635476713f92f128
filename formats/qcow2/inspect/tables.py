"""What the active L1 table, its L2 tables and the refcount table lead to."""

from __future__ import annotations

from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.inspect.layout import Layout
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    REFCOUNT_OFFSET_MASK,
)
from imgtool.inspection import Gone, Notes, Steps, file_size, read
from imgtool.inspection.tables import MAX_TABLE, Pointers, Survey, scan

_ALL = (1 << 64) - 1
#: How many L2 tables are looked at, however small they are.
_MAX_L2_TABLES = 4096
_CLUSTERS = Pointers("A cluster", "data", 8, "big", length=0)


def scan_l1(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the active L1 table: where its L2 tables are, and that none is used twice.

    Starts what looks at the L2 tables themselves, before their places have gone by in a stream.
    """
    pointers = _pointers(header, "An L2 table", L1_OFFSET_MASK, COPIED)
    last = _Last(min(MAX_TABLE // header.geometry.cluster_size, _MAX_L2_TABLES))
    found = Survey(notes, pointers, last.add)
    yield from found.read(
        header.l1_table_offset, header.l1_size * 8, "The active L1 table", layout.fixed
    )
    if not header.has_data_file:
        notes.start(_scan_l2_tables(notes, header, last.offsets))
    yield from found.judge()


class _Last:
    """The last few of many offsets."""

    def __init__(self, limit: int) -> None:
        self.offsets: list[int] = []
        self._limit = limit

    def add(self, offsets: set[int]) -> None:
        if len(self.offsets) == self._limit:
            offsets = {offset for offset in offsets if offset > self.offsets[0]}
        if offsets:
            self.offsets = sorted(offsets.union(self.offsets))[-self._limit :]


def _scan_l2_tables(notes: Notes, header: Header, tables: list[int]) -> Steps[None]:
    """Judge whether the clusters that these L2 tables name begin inside the file.

    A file that was cut ends behind tables whose clusters came next, so that the last of them tell.
    """
    highest = highest_at = 0
    for offset in tables:
        try:
            table = yield from read(offset, header.geometry.cluster_size, "An L2 table")
        except Gone:
            # So it is in every image whose disk has grown, since its L1 table has moved behind.
            notes.warn(
                "l2-behind",
                "An L2 table had gone by before the L1 table came: its clusters are not checked",
                offset,
            )
            continue
        cluster = _last_cluster(header, table)
        if cluster > highest:
            highest, highest_at = cluster, offset
    size = yield from file_size()
    if highest >= size:
        notes.unsafe("data-outside", "A cluster lies past the end of the file", highest_at)


def _last_cluster(header: Header, table: bytes) -> int:
    """The highest offset that an L2 table leads to, 0 if it leads nowhere."""
    if table.count(0) == len(table):
        return 0
    # With subclusters each entry has 64 bits more, which tell of these.
    entries = _CLUSTERS.entries(table)[:: header.geometry.l2_entry_size // 8]
    plain, (packed, _) = L2_OFFSET_MASK, header.geometry.compressed_range(_ALL)
    return max((entry & (packed if entry & COMPRESSED else plain) for entry in entries), default=0)


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
