"""Where an image's tables lie: inside the file, and none over another."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from imgtool.formats.qcow2.header import Header
from imgtool.inspection import Notes, Steps, file_size


class Table(NamedTuple):
    """A range of the file that holds metadata; bytes."""

    offset: int
    length: int
    what: str

    @property
    def end(self) -> int:
        return self.offset + self.length


class Layout:
    """The tables that the header names, and those that :meth:`add` enters."""

    def __init__(self, header: Header) -> None:
        cluster_size = header.geometry.cluster_size
        self._tables: list[Table] = []
        self.add(0, cluster_size, "The header")
        self.add(
            header.refcount_table_offset,
            header.refcount_table_clusters * cluster_size,
            "The refcount table",
        )
        self.add(header.l1_table_offset, header.l1_size * 8, "The active L1 table")
        if header.luks_header is not None:
            self.add(*header.luks_header, "The LUKS header")
        #: What a table of tables must not lead to.
        self.fixed = tuple((table.offset, table.end) for table in self._tables)

    def add(self, offset: int, length: int, what: str) -> None:
        """Enter a table, unless it is empty."""
        if length:
            self._tables.append(Table(offset, length, what))

    def judge(self, notes: Notes) -> Steps[None]:
        """Note every table that ends past the end of the file, or lies over another."""
        size = yield from file_size()
        ordered = sorted(self._tables)
        # The first cluster may be cut short behind what is used of it.
        for table in self._tables[1:]:
            if table.end > size:
                notes.unsafe(
                    "table-outside", f"{table.what} ends past the end of the file", table.offset
                )
        for first, second in itertools.pairwise(ordered):
            if first.end > second.offset:
                notes.unsafe(
                    "table-overlap", f"{second.what} lies over another table", second.offset
                )
