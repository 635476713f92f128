"""The limits have to be noticed when they are passed."""

from __future__ import annotations

import mmap
import os
import time

import pytest

from tests.kit.limits import MiB, measure, within_limits


def fill(size: int) -> int:
    """Take ``size`` bytes from the system: the heap may have as much that is free already."""
    with mmap.mmap(-1, size) as memory:
        for _ in range(size // MiB):
            memory.write(b"x" * MiB)
        return len(memory)


def test_result_and_cost() -> None:
    result, cost = measure(lambda: fill(64 * MiB))
    assert result == 64 * MiB
    assert 60 * MiB < cost.memory < 200 * MiB
    assert 0 <= cost.seconds < 10


def test_too_much_memory() -> None:
    with pytest.raises(AssertionError, match="MiB of memory"):
        within_limits(lambda: fill(100 * MiB), memory=50 * MiB)
    with pytest.raises(AssertionError, match="MemoryError"):
        measure(lambda: len(bytearray(1 << 40)))


def test_too_much_time() -> None:
    def busy() -> None:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    with pytest.raises(AssertionError, match=r"took 0\.\d s"):
        within_limits(busy, seconds=0.1)


def test_failures_come_back() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(AssertionError, match="KeyError: 'lost'"):
        measure(fail)
    with pytest.raises(AssertionError, match="died with code 3"):
        measure(lambda: os._exit(3))
