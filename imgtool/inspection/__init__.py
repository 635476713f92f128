"""Inspection: what a format's inspector asks for, and what it tells.

An inspector is a generator: it yields the regions of the file that it wants to see, and writes
what it learns into :class:`Notes`. It never holds a file, so the same one judges a file on disk
and an upload in progress, whose bytes come past once.
"""

from imgtool.inspection.notes import Notes
from imgtool.inspection.result import Claim, Inspection, NamedFile, Problem, Severity, Unchecked
from imgtool.inspection.steps import (
    Gone,
    NotSeen,
    Region,
    Size,
    Steps,
    file_size,
    pieces,
    read,
    read_exact,
)

__all__ = [
    "Claim",
    "Gone",
    "Inspection",
    "NamedFile",
    "NotSeen",
    "Notes",
    "Problem",
    "Region",
    "Severity",
    "Size",
    "Steps",
    "Unchecked",
    "file_size",
    "pieces",
    "read",
    "read_exact",
]
