"""What the active L1 table and the refcount table point to."""

from __future__ import annotations

from functools import reduce
from operator import or_

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.inspect.layout import Layout
from imgtool.formats.qcow2.schema import COPIED, L1_OFFSET_MASK, REFCOUNT_OFFSET_MASK
from imgtool.inspection import Notes, Steps, file_size, pieces
from imgtool.schema.fields import big_endian_u64

#: How much of a table is looked at, in bytes; an L1 table of 8 MiB maps 512 TiB in usual clusters.
_MAX_TABLE = 8 << 20


def scan_l1(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the active L1 table: where its L2 tables are, and that none is used twice."""
    what, length = "The active L1 table", header.l1_size * 8
    if length > _MAX_TABLE:
        notes.not_checked(what, header.l1_table_offset, f"it is longer than {_MAX_TABLE} bytes")
        return
    yield from _scan(
        notes,
        header,
        layout,
        "An L2 table",
        pieces(header.l1_table_offset, length, what),
        L1_OFFSET_MASK,
        COPIED,
    )


def scan_refcount_table(notes: Notes, header: Header, layout: Layout) -> Steps[None]:
    """Judge the refcount table: where its refcount blocks are, and that none is used twice."""
    length = header.refcount_table_clusters * header.geometry.cluster_size
    return _scan(
        notes,
        header,
        layout,
        "A refcount block",
        pieces(header.refcount_table_offset, length, "The refcount table"),
        REFCOUNT_OFFSET_MASK,
        0,
    )


def _scan(
    notes: Notes,
    header: Header,
    layout: Layout,
    what: str,
    table: pieces,
    mask: int,
    flags: int,
) -> Steps[None]:
    cluster_size = header.geometry.cluster_size
    highest_table = max(table.end for table in layout.fixed)
    reserved = ~(mask | flags)
    start = table.offset
    highest, highest_at, count = 0, 0, 0
    while piece := (yield from table.next()):
        where = table.offset - len(piece)
        if piece.count(0) == len(piece):
            continue
        entries = big_endian_u64(piece[: len(piece) & ~7])
        unique = set(entries)
        combined = reduce(or_, unique, 0)
        if combined & reserved:
            notes.warn("reserved-bits", f"{what} has reserved bits set where it is named", where)
        if combined & mask & (cluster_size - 1):
            # A table of nonsense need not be read to its end.
            raise CorruptImage(f"{what} is not aligned to a cluster", where)
        offsets = {entry & mask for entry in unique}
        offsets.discard(0)
        if not offsets:
            continue
        named = len(entries) - entries.count(0) - (entries.count(flags) if flags else 0)
        # Tables that map many ranges to one cluster make a disk of any size from nothing.
        if len(offsets) < named:
            notes.unsafe("table-shared", f"{what} is used for two places", where)
        if min(offsets) < highest_table:
            _judge_overlap(notes, layout, what, offsets, cluster_size, where)
        count += named
        end = max(offsets)
        if end > highest:
            highest, highest_at = end, where
    size = yield from file_size()
    if count * cluster_size > size and highest < size:
        notes.unsafe(
            "table-shared", f"{what} is named more often than the file has room for", start
        )
    if highest and highest + cluster_size > size:
        # The last cluster of a file may be cut short, but not before it begins.
        if highest >= size:
            notes.unsafe("table-outside", f"{what} lies past the end of the file", highest_at)
        else:
            notes.warn("table-short", f"{what} is cut short by the end of the file", highest_at)


def _judge_overlap(
    notes: Notes, layout: Layout, what: str, offsets: set[int], cluster_size: int, where: int
) -> None:
    for table in layout.fixed:
        if any(table.offset < offset + cluster_size and offset < table.end for offset in offsets):
            notes.unsafe("table-overlap", f"{what} lies over another table", where)
