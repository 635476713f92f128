"""EarlyFlush: the host's disk is busy with what has been written while more is being copied."""

from __future__ import annotations

import threading
from collections.abc import Callable

from imgtool.storage.base import Storage
from imgtool.workers import Workers

#: Bytes written to a file after which it is flushed.
_STEP = 32 << 20


class EarlyFlush:
    """Flushes files now and then on a thread of its own, so that the flush at the end is short.

    Nothing relies on it being done. An error goes to ``fail``: the host tells of it only once.
    """

    def __init__(self, workers: Workers, fail: Callable[[BaseException], None]) -> None:
        self._workers = workers
        self._fail = fail
        self._lock = threading.Lock()
        self._written: dict[Storage, int] = {}
        self._busy = False

    def wrote(self, storage: Storage, length: int) -> None:
        """Say that so many bytes of ``storage`` have been written. Any thread may call it."""
        with self._lock:
            written = self._written.get(storage, 0) + length
            due = written >= _STEP and not self._busy
            self._written[storage] = 0 if due else written
            self._busy |= due
        if due:
            self._workers.submit(self._flush, storage)

    def _flush(self, storage: Storage) -> None:
        try:
            storage.flush()
        except BaseException as error:
            self._fail(error)
        finally:
            self._busy = False
