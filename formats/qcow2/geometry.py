"""What follows from cluster size, refcount width and L2 entry size. All sizes are bytes."""

from __future__ import annotations

from typing import NamedTuple

from imgtool.formats.qcow2.schema import SUBCLUSTERS
from imgtool.units import div_round_up

MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
MAX_REFCOUNT_ORDER = 6
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
#: Host offsets have 56 bits.
MAX_HOST_OFFSET = 1 << 56


class Geometry(NamedTuple):
    """The dimensions of an image's tables."""

    cluster_bits: int
    refcount_order: int = 4
    extended_l2: bool = False

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Entries of one L2 table, which fills one cluster."""
        return self.cluster_size // self.l2_entry_size

    @property
    def l2_coverage(self) -> int:
        """Guest bytes that one L2 table maps."""
        return self.l2_entries << self.cluster_bits

    @property
    def subcluster_size(self) -> int:
        """The granularity of allocation: a cluster, or a 32nd of one with extended L2 entries."""
        return self.cluster_size // SUBCLUSTERS if self.extended_l2 else self.cluster_size

    @property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @property
    def max_refcount(self) -> int:
        # QEMU treats 64-bit refcounts as signed.
        return (1 << min(self.refcount_bits, 63)) - 1

    @property
    def refcount_block_entries(self) -> int:
        """Host clusters that one refcount block, which fills one cluster, counts."""
        return self.cluster_size * 8 // self.refcount_bits

    def clusters(self, size: int) -> int:
        """Clusters needed to hold ``size`` bytes."""
        return div_round_up(size, self.cluster_size)

    def l1_entries(self, size: int) -> int:
        """L1 entries needed to map a disk of ``size`` bytes."""
        return div_round_up(size, self.l2_coverage)

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Host offset and length of a compressed cluster (Compressed Clusters Descriptor).

        The length counts whole sectors up to the last that is used, so it may exceed the data.
        """
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = ((entry >> shift) & ((1 << (self.cluster_bits - 8)) - 1)) + 1
        return offset, sectors * 512 - (offset & 511)
