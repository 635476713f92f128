"""Compare: whether two disks have the same contents."""

from imgtool.ops.compare.compare import Comparison, Difference, compare, compare_devices
from imgtool.ops.compare.errors import UnknownAllocation, Unreadable

__all__ = [
    "Comparison",
    "Difference",
    "UnknownAllocation",
    "Unreadable",
    "compare",
    "compare_devices",
]
