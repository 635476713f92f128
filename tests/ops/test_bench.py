"""Which requests a load consists of, in which order flushes come, and how failures end it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from imgtool.device import BlockDevice
from imgtool.errors import OutOfRange
from imgtool.extent import Extent
from imgtool.ops.bench import Load, bench

_SIZE = 10240


class _Logging(BlockDevice):
    """A disk that notes what is asked of it. Reads of ``bad`` fail."""

    name = "log"
    format = "log"
    read_only = False

    def __init__(self, bad: int | None = None, meet: int = 0) -> None:
        self.log: list[tuple[str, int, int]] = []
        self._bad = bad
        self._barrier = threading.Barrier(meet, timeout=30) if meet else None

    @property
    def size(self) -> int:
        return _SIZE

    def _read(self, offset: int, view: memoryview) -> None:
        self.log.append(("read", offset, len(view)))
        if self._barrier is not None:
            self._barrier.wait()
        if offset == self._bad:
            raise OSError(5, "Input/output error")

    def _write(self, offset: int, view: memoryview) -> None:
        assert bytes(view) == b"\x41" * len(view)
        self.log.append(("write", offset, len(view)))

    def _flush(self) -> None:
        self.log.append(("flush", 0, 0))

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_offsets_wrap_at_the_end() -> None:
    disk = _Logging()
    assert bench(disk, Load(count=6, depth=1, size=512, step=3072, offset=1024)) > 0
    assert [offset for _, offset, _ in disk.log] == [1024, 4096, 7168, 0, 3072, 6144]
    assert {length for _, _, length in disk.log} == {512}


def test_every_request_is_sent_once_whatever_the_depth() -> None:
    disk = _Logging()
    bench(disk, Load(count=1000, depth=30, size=100, step=10))
    found = sorted(offset for _, offset, _ in disk.log)
    assert found == sorted(number * 10 % _SIZE for number in range(1000))


def test_the_depth_is_how_many_are_under_way() -> None:
    """Requests that wait for one another would wait for ever with fewer threads."""
    disk = _Logging(meet=20)
    bench(disk, Load(count=40, depth=20, size=1, step=1))
    assert len(disk.log) == 40


def _flushes(load: Load) -> list[int]:
    """How many writes come before each flush."""
    disk = _Logging()
    bench(disk, load)
    writes, found = 0, []
    for kind, _, _ in disk.log:
        writes += kind == "write"
        if kind == "flush":
            found.append(writes)
    assert writes == load.count
    return found


def _writes(count: int, interval: int, depth: int, *, drain: bool) -> Load:
    return Load(
        count=count,
        depth=depth,
        size=100,
        step=100,
        write=True,
        pattern=0x41,
        flush_interval=interval,
        drain=drain,
    )


@pytest.mark.parametrize(("depth", "drain"), [(1, True), (1, False), (4, True)])
def test_flushes_come_where_what_is_left_is_a_multiple(depth: int, drain: bool) -> None:
    assert _flushes(_writes(10, 4, depth, drain=drain)) == [2, 6, 10]
    assert _flushes(_writes(8, 4, depth, drain=drain)) == [4, 8]
    assert _flushes(_writes(3, 4, depth, drain=drain)) == [3]
    assert _flushes(_writes(10, 0, depth, drain=drain)) == []


def test_undrained_flushes_are_all_sent() -> None:
    assert len(_flushes(_writes(100, 10, 7, drain=False))) == 10


def test_requests_outside_the_disk_fail() -> None:
    for load in (
        Load(count=1, depth=1, offset=_SIZE),
        Load(count=1, depth=1, size=1 << 40),
        Load(count=3, depth=4, size=4096, step=4096),
    ):
        with pytest.raises(OutOfRange):
            bench(_Logging(), load)


def test_a_failure_ends_the_run() -> None:
    disk = _Logging(bad=500)
    with pytest.raises(OSError, match="Input/output"):
        bench(disk, Load(count=100_000, depth=2, size=100, step=100))
    assert len(disk.log) < 100_000
