"""Memory that a run finds ready: in a virtual machine the first touch of a page waits for the host.

A guest gives memory that has been free for seconds back to its host, and gets it again at less than
a gigabyte a second. Runs that write gigabytes into the page cache would measure that, or not, by
chance.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

#: What stays free in any case, more than any run takes, and what is read at a time; bytes.
_LEFT = 512 << 20
_MOST = 6 << 30
_PIECE = 1 << 20


def touch_free(folder: Path) -> None:
    """Have the host give what memory a run may take; it is free again afterwards.

    The page cache takes it, for the holes of a file in ``folder``: of this process's own memory,
    which counts as its children's, it takes none.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    amount = min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - _LEFT, _MOST)
    if amount <= 0:
        return
    buffer = bytearray(_PIECE)
    with tempfile.TemporaryFile(dir=folder) as file:
        number = file.fileno()
        os.truncate(number, amount)
        for offset in range(0, amount, _PIECE):
            os.preadv(number, [buffer], offset)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
