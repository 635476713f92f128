"""What the parts of a check share: the image, the tally, and where findings go."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from imgtool.findings import Findings
from imgtool.formats.qcow2.check.tally import Charge, Tally
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Tables are big-endian on disk.
_SWAPPED = sys.byteorder == "little"

#: So many tables are read without asking whether the host has them stored.
_UNASKED_TABLES = 4096
#: Ranges of data that are remembered of a file. One with more has stored something in each.
_DATA_RANGES = 100_000

_PAST_END = (
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
    "offset {:#x} size {:#x}"
)


@dataclass
class State:
    """One check under way. ``file_size`` is the host file's length in bytes, whole sectors.

    ``charge`` is told of memory before it is taken, in bytes, and raises
    :class:`~imgtool.errors.OverBudget`.
    """

    storage: Storage
    header: Header
    tally: Tally
    findings: Findings
    file_size: int
    charge: Charge

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def past(self) -> int:
        """The first host offset (bytes) that no structure's end may reach.

        The file may end within its last cluster, so structures may end past it by less than one.
        """
        return self.file_size + self.geometry.cluster_size

    def count(self, offset: int, length: int, weight: int = 1) -> None:
        """Count ``weight`` references to every cluster that a range of the host file touches."""
        if length <= 0:
            return
        if offset + length >= self.past:
            self.past_end(offset, length, weight)
            return
        bits = self.geometry.cluster_bits
        first = offset >> bits
        self.tally.add_run(first, ((offset + length - 1) >> bits) + 1 - first, weight)

    def past_end(self, offset: int, length: int, weight: int = 1) -> None:
        """Report a range that lies past the end of the file; it isn't counted."""
        self.findings.corruption(_PAST_END.format(offset, length), weight)

    def hold_data(self, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the tables of one cluster at ``offsets`` may hold anything but zeros.

        A file of enormous length may have millions of tables that were never written; to find
        nothing in each of them would take hours.
        """
        everything = np.ones(len(offsets), np.bool_)
        if len(offsets) <= _UNASKED_TABLES or self._data_ranges is None:
            return everything
        starts, ends = self._data_ranges
        places = np.searchsorted(ends, offsets, side="right")
        reached = offsets + self.geometry.cluster_size
        return np.append(starts, np.int64(1 << 62))[places] < reached

    @cached_property
    def _data_ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Starts and ends of all that the host stores of the file, if that is not too much."""
        if self.storage.allocated() > self.file_size // 2:
            return None
        found = [
            (part.offset, part.offset + part.length)
            for part in itertools.islice(
                self.storage.ranges(0, self.file_size), 2 * _DATA_RANGES + 1
            )
            if part.is_data
        ]
        if len(found) > _DATA_RANGES:
            return None
        both = np.array(found, np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def read_table(self, offset: int, entries: int) -> NDArray[np.uint64]:
        """Read a table of 64-bit entries; what lies past the end of the file is zero."""
        table = np.empty(entries, np.uint64)
        self.storage.read_into(offset, table.view(np.uint8).data)
        return table.byteswap(inplace=True) if _SWAPPED else table
