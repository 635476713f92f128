"""Judging tables of pointers, such as L1 and block tables, in bulk: where their entries lead."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

from imgtool.errors import CorruptImage
from imgtool.inspection.notes import Notes
from imgtool.inspection.steps import Steps, file_size, pieces

#: How much of a table is looked at, in bytes: an L1 table of 1 PiB, a block map of 4 TiB.
MAX_TABLE = 16 << 20

#: Where something is: from an offset up to another.
Place = tuple[int, int]


@dataclass(frozen=True)
class Pointers:
    """What the entries of a table mean. All sizes are bytes.

    ``what`` names what they lead to, which takes ``length`` each, and ``kind`` is ``table`` or
    ``data``. An entry that is none of ``unused`` stands for the offset ``base`` + (entry and
    ``mask``) * ``step``; with ``used``, only where that says so. Offsets are multiples of
    ``alignment``, a power of two, and ``reserved`` are bits that should be 0.
    """

    what: str
    kind: Literal["table", "data"]
    width: Literal[4, 8]
    byteorder: Literal["little", "big"]
    length: int
    unused: frozenset[int] = frozenset((0,))
    mask: int = (1 << 64) - 1
    base: int = 0
    step: int = 1
    alignment: int = 1
    reserved: int = 0
    used: Callable[[int], bool] | None = None

    def entries(self, data: bytes) -> array[int]:
        """The entries as integers."""
        found = array("Q" if self.width == 8 else "I")
        found.frombytes(data[: len(data) - len(data) % self.width])
        if self.byteorder != sys.byteorder:
            found.byteswap()
        return found

    def offsets(self, entries: array[int]) -> list[int]:
        """Where they lead."""
        unused, mask, base, step = self.unused, self.mask, self.base, self.step
        wanted = [entry for entry in entries if entry not in unused]
        if self.used is not None:
            wanted = list(filter(self.used, wanted))
        return [base + (entry & mask) * step for entry in wanted]


def scan(
    notes: Notes,
    offset: int,
    length: int,
    name: str,
    pointers: Pointers,
    taken: Sequence[Place] = (),
) -> Steps[None]:
    """Judge the table ``name``: its entries lead into the file, to nothing ``taken``, none twice.

    Raises :class:`CorruptImage` for what is not aligned: a table of nonsense is not read on.
    """
    found = Survey(notes, pointers)
    yield from found.read(offset, length, name, taken)
    yield from found.judge()


class Survey:
    """Where a table's entries lead, as :func:`scan` judges it, before the file's size is known.

    ``each`` is told the different places that a piece of the table leads to.
    """

    def __init__(
        self, notes: Notes, pointers: Pointers, each: Callable[[set[int]], None] | None = None
    ) -> None:
        self._notes = notes
        self._pointers = pointers
        self._each = each
        self._offset = 0
        self._highest, self._highest_at, self._count = -1, 0, 0

    def read(self, offset: int, length: int, name: str, taken: Sequence[Place] = ()) -> Steps[None]:
        """Look at all entries, as :func:`scan` says."""
        notes, pointers = self._notes, self._pointers
        if length > MAX_TABLE:
            notes.not_checked(name, offset, f"it is longer than {MAX_TABLE} bytes")
            return
        what = pointers.what
        end_of_taken = max((end for _, end in taken), default=0)
        self._offset = offset
        table = pieces(offset, length, name)
        while piece := (yield from table.next()):
            where = table.offset - len(piece)
            entries = pointers.entries(piece)
            if not entries or (
                entries[0] in pointers.unused and entries.count(entries[0]) == len(entries)
            ):
                continue
            if pointers.reserved and reduce(or_, entries) & pointers.reserved:
                notes.warn(
                    "reserved-bits", f"{what} has reserved bits set where it is named", where
                )
            found = pointers.offsets(entries)
            if not found:
                continue
            unique = set(found)
            if reduce(or_, unique) & (pointers.alignment - 1):
                raise CorruptImage(f"{what} is not aligned where it should be", where)
            # Tables that map many ranges to one place make a disk of any size from nothing.
            if len(unique) < len(found):
                notes.unsafe("table-shared", f"{what} is used for two places", where)
            if min(unique) < end_of_taken:
                _judge_overlap(notes, pointers, unique, taken, where)
            self._count += len(found)
            if max(unique) > self._highest:
                self._highest, self._highest_at = max(unique), where
            if self._each is not None:
                self._each(unique)

    def judge(self) -> Steps[None]:
        """Whether the file is long enough for what was found."""
        pointers = self._pointers
        what = pointers.what
        size = yield from file_size()
        if self._highest >= size:
            self._notes.unsafe(
                f"{pointers.kind}-outside",
                f"{what} lies past the end of the file",
                self._highest_at,
            )
        elif (self._count - 1) * pointers.length >= max(size, 1):
            # The last one may be cut short by the end of the file.
            self._notes.unsafe(
                "table-shared",
                f"{what} is named more often than the file has room for",
                self._offset,
            )


def _judge_overlap(
    notes: Notes, pointers: Pointers, offsets: set[int], taken: Sequence[Place], where: int
) -> None:
    for start, end in taken:
        if any(start < offset + pointers.length and offset < end for offset in offsets):
            notes.unsafe("table-overlap", f"{pointers.what} lies over another table", where)
