"""L2 tables: what their entries refer to, what is wrong with them, and statistics.

Source: the specification's sections "Cluster mapping", "Standard Cluster Descriptor",
"Compressed Clusters Descriptor" and "Extended L2 Entries".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.check.tally import COPIED_MARK, UNCOPIED_MARK
from imgtool.formats.qcow2.geometry import MAX_HOST_OFFSET
from imgtool.formats.qcow2.schema import COMPRESSED, COPIED, L2_OFFSET_MASK, ZERO_FLAG

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Words = NDArray[np.uint64]

RESERVED = 0x3F000000000001FE
_COPIED, _COMPRESSED, _ZERO = np.uint64(COPIED), np.uint64(COMPRESSED), np.uint64(ZERO_FLAG)
_OFFSET = np.uint64(L2_OFFSET_MASK)
_LOW_HALF, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Entries(NamedTuple):
    """The entries of a table that are not wholly zero, by column.

    ``position`` is the entry's place in the table, ``bitmap`` its subcluster bitmap (None without
    extended L2 entries). ``host`` is the host offset of plain entries; ``mapped`` says which are
    plain and have a host cluster.
    """

    position: NDArray[np.int64]
    entry: Words
    bitmap: Words | None
    compressed: Mask
    host: Words
    mapped: Mask


class L2Check:
    """Walks L2 tables."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._geometry = geometry = state.geometry
        self._cluster_size = np.uint64(geometry.cluster_size)
        self._bits = np.uint64(geometry.cluster_bits)
        self._external = state.header.has_data_file
        self._zero_flag = state.header.version >= 3 and not geometry.extended_l2
        #: Whether the COPIED flags need a closer look than the tally's marks allow.
        self.copied_unclear = False

    def walk(self, offset: int, weight: int, active: int) -> None:
        """Count what the table at host ``offset`` refers to.

        The table is referred to ``weight`` times, ``active`` times of these by the active disk.
        """
        words = self._state.read_table(offset, self._geometry.cluster_size // 8)
        if self._walk_run(words, weight, active):
            return
        entries = self.entries(words)
        if not len(entries.position):
            return
        self._report(entries, weight)
        data = entries.mapped if not self._external else np.zeros_like(entries.mapped)
        self._count_data(entries, data, weight, active)
        packed = self._packed(entries)
        self._count_packed(entries.entry[packed], weight)
        if active:
            self._statistics(entries, packed, active)
            if self._external and bool((entries.mapped & ~_copied(entries.entry)).any()):
                self.copied_unclear = True

    def _walk_run(self, words: Words, weight: int, active: int) -> bool:
        """Do all of it for a table that maps one run of host clusters, as preallocation leaves it.

        Returns false, having done nothing, for any other table.
        """
        state, geometry = self._state, self._geometry
        if geometry.extended_l2:
            if words[1::2].any():
                return False
            words = words[0::2]
        first, last = int(words[0]), int(words[-1])
        count, cluster_size = len(words), geometry.cluster_size
        host = first & L2_OFFSET_MASK
        if (
            self._external
            or not host
            or host % cluster_size
            or first & (RESERVED | COMPRESSED | ZERO_FLAG)
            or last != first + (count - 1) * cluster_size
            or host + count * cluster_size >= min(state.past, MAX_HOST_OFFSET)
            or not bool((words[1:] - words[:-1] == self._cluster_size).all())
        ):
            return False
        cluster = host >> geometry.cluster_bits
        state.tally.add_run(cluster, count, weight)
        if active:
            state.tally.mark_run(cluster, count, COPIED_MARK if first & COPIED else UNCOPIED_MARK)
            state.findings.result.allocated_clusters += count * active
        return True

    def entries(self, words: Words) -> Entries:
        """Sort out the entries of a table."""
        bitmap: Words | None = None
        if self._geometry.extended_l2:
            words, bitmap = words[0::2], words[1::2]
            position = np.flatnonzero(words | bitmap)
            bitmap = bitmap[position]
        else:
            position = np.flatnonzero(words)
        entry = words[position]
        compressed = (entry & _COMPRESSED) != 0
        host = entry & _OFFSET
        hosted = host != 0
        if self._external:
            # Offset 0 of a data file is as good as any other, and the flag says that it is meant.
            plain = (entry & _ZERO) == 0 if self._zero_flag else True
            hosted |= _copied(entry) & plain
        return Entries(position, entry, bitmap, compressed, host, hosted & ~compressed)

    def _packed(self, entries: Entries) -> Mask:
        """Which compressed entries are good enough to be counted."""
        if self._external:
            return np.zeros_like(entries.compressed)
        if entries.bitmap is None:
            return entries.compressed
        packed: Mask = entries.compressed & (entries.bitmap == 0)
        return packed

    def _count_data(self, entries: Entries, data: Mask, weight: int, active: int) -> None:
        tally, hosts, words = self._state.tally, entries.host[data], entries.entry[data]
        if not len(hosts):
            return
        clusters = (hosts >> self._bits).astype(np.int64)
        inside = hosts < np.uint64(self._state.file_size)
        if not inside.all():
            # Refcount blocks may speak of clusters that the file does not have.
            self.copied_unclear |= bool(active)
        counted = clusters[inside]
        tally.add(counted, weight)
        unaligned = (hosts & (self._cluster_size - np.uint64(1))) != 0
        if unaligned.any():
            tally.add(clusters[inside & unaligned] + 1, weight)
        if active:
            flagged = _copied(words[inside])
            tally.mark(counted[flagged], COPIED_MARK)
            tally.mark(counted[~flagged], UNCOPIED_MARK)

    def _count_packed(self, words: Words, weight: int) -> None:
        if not len(words):
            return
        offsets, ends = self.packed_ranges(words)
        inside = ends < np.uint64(self._state.past)
        first = (offsets[inside] >> self._bits).astype(np.int64)
        last = ((ends[inside] - np.uint64(1)) >> self._bits).astype(np.int64)
        # A compressed cluster has at most twice a cluster's length, so it touches at most three.
        for step in range(3):
            self._state.tally.add(first[first + step <= last] + step, weight)

    def packed_ranges(self, words: Words) -> tuple[Words, Words]:
        """Host offsets of the compressed data that entries name, and of their ends."""
        bits = self._geometry.cluster_bits
        shift = np.uint64(62 - (bits - 8))
        offsets = words & ((np.uint64(1) << shift) - np.uint64(1))
        sectors = ((words >> shift) & np.uint64((1 << (bits - 8)) - 1)) + np.uint64(1)
        return offsets, (offsets & ~np.uint64(511)) + sectors * np.uint64(512)

    def _statistics(self, entries: Entries, packed: Mask, active: int) -> None:
        result = self._state.findings.result
        hosts = entries.host[entries.mapped]
        compressed = int(np.count_nonzero(packed))
        # A cluster is fragmented if it doesn't follow the one before it; a compressed one always.
        breaks = int(np.count_nonzero(hosts[1:] != hosts[:-1] + self._cluster_size))
        result.allocated_clusters += active * (len(hosts) + compressed)
        result.compressed_clusters += active * compressed
        result.fragmented_clusters += active * (breaks + compressed)

    # What is wrong with entries

    def _report(self, entries: Entries, weight: int) -> None:
        """Count what is wrong, and tell it entry by entry while anybody listens."""
        faults = self._faults(entries)
        wrong = np.logical_or.reduce(faults)
        if not wrong.any():
            return
        findings = self._state.findings
        if not findings.listening:
            findings.untold_corruptions(weight * sum(int(np.count_nonzero(f)) for f in faults))
            return
        for place in np.flatnonzero(wrong).tolist():
            word = int(entries.entry[place])
            bitmap = None if entries.bitmap is None else int(entries.bitmap[place])
            if entries.compressed[place]:
                self._report_packed(int(entries.position[place]), word, bitmap, weight)
            else:
                self._report_plain(word, bool(entries.mapped[place]), bitmap, weight)

    def _faults(self, entries: Entries) -> list[Mask]:
        """Everything that an entry can have wrong, each a finding of its own."""
        entry, compressed, mapped = entries.entry, entries.compressed, entries.mapped
        faults = [
            ~compressed & ((entry & np.uint64(RESERVED)) != 0),
            mapped & ((entries.host & (self._cluster_size - np.uint64(1))) != 0),
        ]
        if not self._external:
            faults.append(mapped & (entries.host >= np.uint64(self._state.file_size)))
        if compressed.any():
            _, ends = self.packed_ranges(entry)
            bad = (ends >= np.uint64(self._state.past)) | self._external
            if entries.bitmap is not None:
                bad |= entries.bitmap != 0
            faults += (compressed & _copied(entry), compressed & bad)
        if entries.bitmap is not None:
            allocated, zero = entries.bitmap & _LOW_HALF, entries.bitmap >> _HALF
            faults.append(~compressed & ~mapped & (allocated != 0))
            faults.append(mapped & ((allocated & zero) != 0))
        return faults

    def _report_packed(self, index: int, word: int, bitmap: int | None, weight: int) -> None:
        findings = self._state.findings
        offset, length = self._geometry.compressed_range(word)
        if word & COPIED:
            findings.corruption(
                f"ERROR: coffset={offset:#x}: copied flag must never be set for compressed "
                "clusters",
                weight,
            )
            word &= ~COPIED
        if self._external:
            findings.corruption(
                f"ERROR compressed cluster {index} with data file, entry={word:#x}", weight
            )
        elif bitmap:
            findings.corruption(
                f"ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, "
                f"entry={word:#x}",
                weight,
            )
        elif offset + length >= self._state.past:
            self._state.past_end(offset, length, weight)

    def _report_plain(self, word: int, mapped: bool, bitmap: int | None, weight: int) -> None:
        findings = self._state.findings
        host, cluster_size = word & L2_OFFSET_MASK, self._geometry.cluster_size
        allocated = 0 if bitmap is None else bitmap & 0xFFFFFFFF
        if word & RESERVED:
            findings.corruption(f"ERROR found l2 entry with reserved bits set: {word:x}", weight)
        if not mapped:
            if allocated:
                findings.corruption(
                    "ERROR: Unallocated cluster has non-zero subcluster allocation map", weight
                )
            return
        if bitmap is not None and allocated & bitmap >> 32:
            findings.corruption(
                f"ERROR offset={host:x}: Allocated cluster has corrupted subcluster allocation "
                "bitmap",
                weight,
            )
        if host % cluster_size:
            holds_data = allocated if bitmap is not None else not word & ZERO_FLAG
            kind = "Data" if holds_data else "Preallocated"
            findings.corruption(
                f"ERROR offset={host:x}: {kind} cluster is not properly aligned; L2 entry "
                "corrupted.",
                weight,
            )
        if not self._external and host >= self._state.file_size:
            self._state.past_end(host, cluster_size, weight)


def _copied(words: Words) -> Mask:
    flags: Mask = (words & _COPIED) != 0
    return flags
