"""How often each host cluster is referred to: counted in memory while an image is checked.

Two ways of counting share one interface. Where the file holds what its length promises, an array
has a place for every cluster. A file of enormous length that stores next to nothing must not cost
memory by its length, so there the references themselves are kept, sorted.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.unsignedinteger[Any]]

Charge = Callable[[int], None]

#: What is noted of a cluster that an entry with or without the COPIED flag names.
COPIED_MARK, UNCOPIED_MARK = 1, 2

_BYTES_PER_CLUSTER = 3
#: Of a reference that is kept, while it is sorted in.
_BYTES_PER_REFERENCE = 64
_MOST_IN_16_BITS = 0xFFFF
#: Up to here an array is taken whatever the file stores.
_ALWAYS_DENSE_BYTES = 96 << 20
#: References that are collected before they are sorted in.
_PENDING = 1 << 20


def _free(amount: int) -> None:
    """Charge nothing."""


class Tally(abc.ABC):
    """Counts the references to host clusters ``0`` to ``clusters - 1``.

    ``charge`` is told of memory before it is taken, in bytes.
    """

    def __init__(self, clusters: int, charge: Charge = _free) -> None:
        self.clusters = clusters
        self._charge = charge

    @abc.abstractmethod
    def add_run(self, first: int, count: int, weight: int = 1) -> None:
        """Count ``weight`` references to each of ``count`` clusters from ``first`` on."""

    @abc.abstractmethod
    def add(self, clusters: NDArray[np.int64], weight: int = 1) -> None:
        """Count ``weight`` references to each of ``clusters``, which may repeat."""

    @abc.abstractmethod
    def window(self, first: int, count: int) -> Counts:
        """The counts of ``count`` clusters from ``first`` on."""

    @abc.abstractmethod
    def of(self, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The counts of clusters anywhere."""

    @abc.abstractmethod
    def above(self, limit: int) -> tuple[NDArray[np.int64], Counts]:
        """The clusters with more than ``limit`` references, in order, and their counts."""

    @abc.abstractmethod
    def touched(self, unit: int) -> NDArray[np.int64]:
        """The numbers, in order, of all units of ``unit`` clusters that may have references."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Let go of all that was counted: it is asked for no more."""

    def mark_run(self, first: int, count: int, mark: int) -> None:
        """Note that entries with (or without) COPIED name these clusters."""
        return  # notes are optional: :meth:`marks` says whether they are taken

    def mark(self, clusters: NDArray[np.int64], mark: int) -> None:
        """As :meth:`mark_run`, for clusters anywhere."""
        return

    def marks(self, first: int, count: int) -> NDArray[np.uint8] | None:
        """What was noted, or None if this tally takes no notes."""
        return None


class DenseTally(Tally):
    """One counter for each cluster; memory that is never touched costs nothing."""

    def __init__(self, clusters: int, charge: Charge = _free) -> None:
        super().__init__(clusters, charge)
        charge(clusters * _BYTES_PER_CLUSTER)
        self._counts: NDArray[Any] = np.zeros(clusters, np.uint16)
        self._marks = np.zeros(clusters, np.uint8)
        #: No count can be higher.
        self._bound = 0
        #: What the counters can hold.
        self._most = _MOST_IN_16_BITS

    def add_run(self, first: int, count: int, weight: int = 1) -> None:
        self._bound += weight
        counts = self._counts[first : first + count]
        if self._bound > self._most and self._make_room(counts, weight):
            counts = self._counts[first : first + count]
        counts += weight

    def add(self, clusters: NDArray[np.int64], weight: int = 1) -> None:
        if len(clusters):
            self._bound += weight * len(clusters)
            if self._bound > self._most:
                self._make_room(self._counts[clusters], weight * len(clusters))
            np.add.at(self._counts, clusters, weight)

    def _make_room(self, counts: NDArray[Any], more: int) -> bool:
        """Take wider counters if ``more`` do not fit the present ones; say whether that was so."""
        highest = int(counts.max()) + more
        if highest <= self._most:
            return False
        wider = np.dtype(np.uint32 if highest <= np.iinfo(np.uint32).max else np.uint64)
        self._charge(len(self._counts) * wider.itemsize)
        self._counts = self._counts.astype(wider)
        self._most = int(np.iinfo(wider).max)
        return True

    def window(self, first: int, count: int) -> Counts:
        return self._counts[first : first + count]

    def of(self, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self._counts[clusters].astype(np.uint64)

    def above(self, limit: int) -> tuple[NDArray[np.int64], Counts]:
        if limit >= np.iinfo(self._counts.dtype).max:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        clusters = np.flatnonzero(self._counts > limit)
        return clusters, self._counts[clusters]

    def touched(self, unit: int) -> NDArray[np.int64]:
        whole = len(self._counts) // unit
        found = self._counts[: whole * unit].reshape(whole, unit).any(axis=1)
        rest = self._counts[whole * unit :].any()
        return np.flatnonzero(np.append(found, rest)).astype(np.int64)

    def clear(self) -> None:
        self._counts, self._marks = self._counts[:0].copy(), self._marks[:0].copy()

    def mark_run(self, first: int, count: int, mark: int) -> None:
        self._marks[first : first + count] |= mark

    def mark(self, clusters: NDArray[np.int64], mark: int) -> None:
        # An entry that is listed twice gets the same value twice.
        self._marks[clusters] |= mark

    def marks(self, first: int, count: int) -> NDArray[np.uint8] | None:
        return self._marks[first : first + count]


class SparseTally(Tally):
    """The clusters that are referred to, sorted, and their counts."""

    def __init__(self, clusters: int = 1 << 62, charge: Charge = _free) -> None:
        super().__init__(clusters, charge)
        self._found = np.empty(0, np.int64)
        self._counts = np.empty(0, np.uint64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[Any] | int]] = []
        self._waiting = 0
        self._charged = 0

    def add_run(self, first: int, count: int, weight: int = 1) -> None:
        self.add(np.arange(first, first + count, dtype=np.int64), weight)

    def add(self, clusters: NDArray[np.int64], weight: int = 1) -> None:
        self._append(clusters, weight)

    def add_counted(self, clusters: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Count so many references to each of ``clusters``."""
        self._append(clusters, counts)

    def _append(self, clusters: NDArray[np.int64], counts: NDArray[np.int64] | int) -> None:
        self._pending.append((clusters, counts))
        self._waiting += len(clusters)
        # In step with what is there, so that sorting in costs little on the whole.
        if self._waiting > max(_PENDING, len(self._found)):
            self._settle()

    def _settle(self) -> None:
        if not self._pending:
            return
        known = len(self._found) + self._waiting
        if known > self._charged:
            self._charge((known - self._charged) * _BYTES_PER_REFERENCE)
            self._charged = known
        clusters = np.concatenate((self._found, *(part for part, _ in self._pending)))
        weights = np.concatenate(
            (
                self._counts,
                *(
                    np.broadcast_to(np.asarray(counts, np.uint64), part.shape)
                    for part, counts in self._pending
                ),
            )
        )
        self._pending, self._waiting = [], 0
        order = np.argsort(clusters, kind="stable")
        clusters = clusters[order]
        starts = np.flatnonzero(np.append(True, clusters[1:] != clusters[:-1])[: len(clusters)])
        self._found = clusters[starts]
        self._counts = np.add.reduceat(weights[order], starts) if len(starts) else weights

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Everything that has been counted, in order, and the counts."""
        self._settle()
        return self._found, self._counts

    def window(self, first: int, count: int) -> Counts:
        self._settle()
        start, end = np.searchsorted(self._found, (first, first + count))
        counts = np.zeros(count, np.uint64)
        counts[self._found[start:end] - first] = self._counts[start:end]
        return counts

    def of(self, clusters: NDArray[np.int64]) -> NDArray[np.uint64]:
        self._settle()
        found = np.append(self._found, np.int64(-1))
        places = np.searchsorted(self._found, clusters)
        return np.where(
            found[places] == clusters, np.append(self._counts, np.uint64(0))[places], np.uint64(0)
        )

    def above(self, limit: int) -> tuple[NDArray[np.int64], Counts]:
        self._settle()
        places = np.flatnonzero(self._counts > np.uint64(limit))
        return self._found[places], self._counts[places]

    def touched(self, unit: int) -> NDArray[np.int64]:
        self._settle()
        return np.unique(self._found // unit)

    def clear(self) -> None:
        self._found, self._counts = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._pending, self._waiting = [], 0


def new_tally(
    clusters: int, stored: int, *, room: int | None = None, charge: Charge = _free
) -> Tally:
    """A tally for a file of ``clusters`` clusters that occupies ``stored`` bytes of the host.

    ``room`` is the memory that may be taken, in bytes; None for as much as it needs.
    """
    dense = clusters * _BYTES_PER_CLUSTER
    if dense <= max(_ALWAYS_DENSE_BYTES, stored) and (room is None or dense <= room):
        return DenseTally(clusters, charge)
    return SparseTally(clusters, charge)
