"""Zeros: to fill with, to write, and to compare with."""

from __future__ import annotations

#: As many zeros as are written or compared with at a time; bytes.
PIECE = 1 << 20

_ZEROS = bytes(PIECE)

#: The same as a view, of which parts can be taken without copying them.
ZEROS = memoryview(_ZEROS)


def fill(view: memoryview) -> None:
    """Set every byte of ``view`` to zero."""
    for start in range(0, len(view), PIECE):
        part = view[start : start + PIECE]
        part[:] = ZEROS[: len(part)]


def all_zero(view: memoryview) -> bool:
    """Whether every byte of ``view`` is zero.

    Memory is compared with memory, up to the first byte that tells.
    """
    return all(
        _ZEROS.startswith(view[start : start + PIECE]) for start in range(0, len(view), PIECE)
    )
