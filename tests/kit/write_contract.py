"""The contract for writing: what every disk that can be written to must do.

Used as :mod:`tests.kit.contract` is: a subclass says how an empty image is made, and may look at
what was written in its own way (:meth:`WriteContract.judge`).
"""

from __future__ import annotations

import abc
import io
import random
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgtool.chain import Source
from imgtool.device import BlockDevice
from imgtool.errors import OutOfRange
from tests.kit.disks import check_extents, check_read, check_reads, open_disk
from tests.kit.effort import effort
from tests.kit.oracle import OracleDisk

#: Small enough to go through many times, and no multiple of any cluster size.
SIZE = (3 << 20) + 512

_NOISE = random.Random(99).randbytes(1 << 20)

_STEPS = (1, 512, 4096, 65536, 1 << 20)
_kinds = st.sampled_from(
    ["write"] * 5 + ["zero", "unmap", "discard", "read", "flush", "reopen", "resize"]
)
_operations = st.lists(
    st.tuples(
        _kinds,
        st.sampled_from(_STEPS),
        st.integers(0, SIZE),
        st.sampled_from([1, 511, 512, 4096, 65536, 200_000, 1 << 20]),
    ),
    max_size=25,
)


class WriteContract(abc.ABC):
    """What writing to any image must do."""

    format: ClassVar[str]
    #: What unlocks the images, if they are encrypted.
    password: ClassVar[str | None] = None
    #: By name: the options with which :meth:`make` is called.
    option_sets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    @classmethod
    def open_disk(cls, source: Source, format: str | None = None, **how: Any) -> BlockDevice:
        """Open an image as :func:`tests.kit.disks.open_disk` does, with the format's password."""
        return open_disk(source, format, password=cls.password, **how)

    @abc.abstractmethod
    def make(self, folder: Path, size: int, options: Mapping[str, Any]) -> tuple[Path, bytes]:
        """Make an image of ``size`` bytes; return its path and what it holds to begin with."""

    def judge(self, path: Path, oracle: OracleDisk) -> None:
        """Look at a finished image once more, from outside."""
        assert path.exists()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", list(self.option_sets), indirect=True)

    @pytest.fixture
    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Any]:
        return self.option_sets[request.param]

    @given(operations=_operations)
    @settings(
        max_examples=effort(15),
        # An option set is never changed, and a method that several classes inherit is one test.
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,
            HealthCheck.too_slow,
        ],
    )
    def test_random_writes(
        self, options: Mapping[str, Any], operations: list[tuple[str, int, int, int]]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, content = self.make(Path(folder), SIZE, options)
            writer = _Writer(
                lambda: self.open_disk(path, self.format, writable=True),
                content,
                encrypted=self.password is not None,
            )
            try:
                for operation in operations:
                    writer.do(*operation)
                writer.compare()
            finally:
                writer.device.close()
            self.finish(path, writer.oracle)

    def finish(self, path: Path, oracle: OracleDisk) -> None:
        """Read back what an image holds once it is closed."""
        with self.open_disk(path, self.format) as device:
            content = device.read_at(0, device.size)
            assert oracle.agrees(content)
            check_reads(device, content, count=10)
            check_extents(device, content, encrypted=self.password is not None)
        self.judge(path, oracle)

    def test_every_length_at_every_edge(self, tmp_path: Path, options: Mapping[str, Any]) -> None:
        path, content = self.make(tmp_path, SIZE, options)
        oracle = OracleDisk(SIZE)
        oracle.write(0, content)
        with self.open_disk(path, self.format, writable=True) as device:
            for edge in (0, 65536, 1 << 20, 2 << 20, SIZE):
                for start in (edge - 65537, edge - 513, edge - 1, edge, edge + 1):
                    for length in (1, 2, 513, 65536 + 2):
                        if start >= 0 and start + length <= SIZE:
                            data = _NOISE[start % 7919 :][:length]
                            device.write_at(start, data)
                            oracle.write(start, data)
                            check_read(device, bytes(oracle.data), start, length)
            assert oracle.agrees(device.read_at(0, SIZE))
        self.finish(path, oracle)

    def test_threads(self, tmp_path: Path, options: Mapping[str, Any]) -> None:
        """Each writes to a part of its own, unaligned, while the others write to theirs."""
        path, content = self.make(tmp_path, SIZE, options)
        oracle = OracleDisk(SIZE)
        oracle.write(0, content)
        part = SIZE // 8 + 13
        with self.open_disk(path, self.format, writable=True) as device:

            def work(number: int) -> None:
                chance = random.Random(number)
                first, last = number * part, min(SIZE, (number + 1) * part)
                for _ in range(25):
                    start = chance.randrange(first, last)
                    data = _NOISE[: chance.randrange(1, 50_000)][: last - start]
                    device.write_at(start, data)
                    oracle.write(start, data)
                    assert device.read_at(start, len(data)) == data

            with ThreadPoolExecutor(8) as pool:
                for done in [pool.submit(work, number) for number in range(8)]:
                    done.result()
            assert oracle.agrees(device.read_at(0, SIZE))
        self.finish(path, oracle)

    def test_outside_the_disk(self, tmp_path: Path, options: Mapping[str, Any]) -> None:
        path, content = self.make(tmp_path, SIZE, options)
        with self.open_disk(path, self.format, writable=True) as device:
            for offset, length in [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (1 << 62, 1), (-512, 512)]:
                with pytest.raises(OutOfRange):
                    device.write_at(offset, bytes(length))
                with pytest.raises(OutOfRange):
                    device.write_zeroes(offset, length)
                with pytest.raises(OutOfRange):
                    device.discard(offset, length)
            device.write_at(SIZE, b"")
            device.write_at(0, bytearray())
            device.write_zeroes(SIZE, 0)
            device.discard(0, 0)
            assert device.read_at(0, SIZE) == content

    def test_buffers(self, tmp_path: Path, options: Mapping[str, Any]) -> None:
        import numpy as np

        path, content = self.make(tmp_path, SIZE, options)
        oracle = OracleDisk(SIZE)
        oracle.write(0, content)
        buffers = [bytearray(b"ab"), memoryview(b"xcdx")[1:3], np.arange(6, dtype=">u2")]
        with self.open_disk(path, self.format, writable=True) as device:
            for number, buffer in enumerate(buffers):
                device.write_at(number * 1000, buffer)
                oracle.write(number * 1000, memoryview(buffer).tobytes())
            device.write_at(5, np.empty((0, 3)))
        self.finish(path, oracle)

    def test_as_file(self, tmp_path: Path, options: Mapping[str, Any]) -> None:
        path, content = self.make(tmp_path, SIZE, options)
        oracle = OracleDisk(SIZE)
        oracle.write(0, content)
        with self.open_disk(path, self.format, writable=True) as device:
            file = device.as_file()
            assert file.writable()
            file.seek(100)
            assert file.write(b"hundred") == 7
            assert file.tell() == 107
            file.seek(-3, io.SEEK_END)
            assert file.write(b"toolong") == 3
            with pytest.raises(OutOfRange):
                file.write(b"x")
            with io.BufferedRandom(device.as_file()) as buffered:
                buffered.seek(70_000)
                buffered.write(b"b" * 10_000)
                buffered.seek(69_999)
                assert buffered.read(2)[1:] == b"b"
        oracle.write(100, b"hundred")
        oracle.write(SIZE - 3, b"too")
        oracle.write(70_000, b"b" * 10_000)
        self.finish(path, oracle)

    def test_what_is_flushed_is_seen_by_others(
        self, tmp_path: Path, options: Mapping[str, Any]
    ) -> None:
        path, _ = self.make(tmp_path, SIZE, options)
        with self.open_disk(path, self.format, writable=True) as device:
            device.write_at(1_000_000, b"flushed")
            device.flush()
            with self.open_disk(path, self.format, share=True) as other:
                assert other.read_at(1_000_000, 7) == b"flushed"


class _Writer:
    """A disk being written to, with its oracle."""

    def __init__(self, open: Callable[[], BlockDevice], content: bytes, *, encrypted: bool) -> None:
        self._open = open
        self._encrypted = encrypted
        self.oracle = OracleDisk(len(content))
        self.oracle.write(0, content)
        self.device = self._open()

    def do(self, kind: str, step: int, where: int, length: int) -> None:
        size = self.oracle.size
        offset = min(where // step * step, size)
        length = min(length, size - offset)
        if kind == "write":
            data = _NOISE[where % 100_003 :][:length]
            self.device.write_at(offset, data)
            self.oracle.write(offset, data)
        elif kind in ("zero", "unmap"):
            self.device.write_zeroes(offset, length, unmap=kind == "unmap")
            self.oracle.zero(offset, length)
        elif kind == "discard":
            self.device.discard(offset, length)
            self.oracle.discard(offset, length)
        elif kind == "read":
            self.compare()
        elif kind == "flush":
            self.device.flush()
        elif kind == "reopen":
            self.device.close()
            self.device = self._open()
        else:
            new = -(-where // 512) * 512
            self.device.resize(new)
            if new > size and self.device.stores_zeros:
                self.device.write_zeroes(size, new - size)
            self.oracle.resize(new)

    def compare(self) -> None:
        assert self.device.size == self.oracle.size
        content = self.device.read_at(0, self.device.size)
        assert self.oracle.agrees(content)
        check_extents(self.device, content, encrypted=self._encrypted)
