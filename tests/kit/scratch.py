"""A folder for files that nobody keeps."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch(folder: Path | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards: ``folder``, or one in memory, where flushing is quick."""
    if folder is None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = Path(tempfile.mkdtemp(prefix="imgtool-", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
