"""What the parts of a check share: the image, the tally, and where findings go."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from imgtool.findings import Findings
from imgtool.formats.qcow2.check.tally import Tally
from imgtool.formats.qcow2.geometry import Geometry
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.references import MANY_TABLES
from imgtool.formats.qcow2.stored import StoredRanges
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Tables are big-endian on disk.
_SWAPPED = sys.byteorder == "little"

_PAST_END = (
    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
    "offset {:#x} size {:#x}"
)


class Charges:
    """What is charged to an image's account for as long as something is counted.

    Calling it charges so many bytes, before they are taken, and raises
    :class:`~imgtool.errors.OverBudget`. What the host stores of the file allows more.
    """

    def __init__(self, storage: Storage, what: str = "Counting references") -> None:
        self._account, self._what = storage.account, what
        self.stored = storage.allocated()
        self._charged = 0

    def __call__(self, amount: int) -> None:
        self._account.charge(amount, self._what, stored=self.stored)
        self._charged += amount

    @property
    def room(self) -> int:
        """The memory that is left, in bytes."""
        return self._account.room(self.stored)

    def release(self) -> None:
        """Give back all that was charged: it has been let go of."""
        self._account.release(self._charged)
        self._charged = 0


@dataclass
class State:
    """One check under way. ``file_size`` is the host file's length in bytes, whole sectors.

    ``charge`` takes memory for what lives as long as this does.
    """

    storage: Storage
    header: Header
    tally: Tally
    findings: Findings
    file_size: int
    charge: Charges

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def past(self) -> int:
        """The first host offset (bytes) that no structure's end may reach.

        The file may end within its last cluster, so structures may end past it by less than one.
        """
        return self.file_size + self.geometry.cluster_size

    def release(self) -> None:
        """Let go of all that was counted, and give back what was charged for it."""
        self.tally.clear()
        self.charge.release()

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
        if len(offsets) <= MANY_TABLES:
            return np.ones(len(offsets), np.bool_)
        return self._stored.reach(offsets, self.geometry.cluster_size)

    @cached_property
    def _stored(self) -> StoredRanges:
        found = StoredRanges(self.storage)
        self.charge(found.nbytes)
        return found

    def read_table(self, offset: int, entries: int) -> NDArray[np.uint64]:
        """Read a table of 64-bit entries; what lies past the end of the file is zero."""
        self.storage.account.spend(1 + (entries * 8 >> 10))
        table = np.empty(entries, np.uint64)
        self.storage.read_into(offset, table.view(np.uint8).data)
        return table.byteswap(inplace=True) if _SWAPPED else table
