"""Files that are flushed while more is being copied into them."""

from __future__ import annotations

import errno
import threading

import pytest

from imgtool.chain import Opener, Reference
from imgtool.ops.convert import early
from imgtool.ops.convert.engine import CopyEngine, CopyJob
from imgtool.storage.memory import MemoryStorage
from tests.kit.faults import WrappedStorage
from tests.ops.convert.disks import MiB, noise

SIZE = 24 * MiB


class Host(WrappedStorage):
    """Counts flushes; the first may fail, and as with a kernel none after it does."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__(MemoryStorage(bytes(SIZE)))
        self.fails = fails
        self.flushed_by: list[threading.Thread] = []

    def flush(self) -> None:
        self.flushed_by.append(threading.current_thread())
        if self.fails:
            self.fails = False
            raise OSError(errno.EIO, "Input/output error", self.name)


def copy(host: Host, data: bytes) -> None:
    opener = Opener(writable=True)
    with (
        Opener().reference(Reference(MemoryStorage(data), "raw")) as source,
        opener.reference(Reference(host, "raw")) as target,
    ):
        CopyEngine(CopyJob(source=source, target=target)).run()


def test_what_is_written_is_flushed_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "_STEP", 4 * MiB)
    host, data = Host(), noise(SIZE)
    copy(host, data)
    assert host.inner.getvalue() == data
    beside = [thread for thread in host.flushed_by if thread is not threading.current_thread()]
    assert 1 <= len(beside) <= SIZE // (4 * MiB)


def test_an_error_that_is_told_once_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "_STEP", 4 * MiB)
    with pytest.raises(OSError, match="Input/output error"):
        copy(Host(fails=True), noise(SIZE))


def test_little_is_not_flushed_on_the_way() -> None:
    host = Host()
    copy(host, noise(SIZE))
    assert all(thread is threading.current_thread() for thread in host.flushed_by)
