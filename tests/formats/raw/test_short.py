"""An unfinished raw file lacks its last sector, whatever was written to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.ops.create import begin, plan_create
from imgtool.storage.memory import MemoryStorage

_SIZE = 5 * 512


def _data() -> bytes:
    return os.urandom(_SIZE)


@pytest.mark.parametrize("step", [100, 512, 600, _SIZE])
def test_it_is_short_until_it_is_finished(step: int) -> None:
    storage, data = MemoryStorage(), _data()
    with begin(plan_create(storage, _SIZE, format="raw")) as image:
        for start in range(0, _SIZE, step):
            image.device.write_at(start, data[start : start + step])
            assert storage.size() < _SIZE
        assert image.device.read_at(0, _SIZE) == data
        assert image.device.read_at(_SIZE - 300, 200) == data[-300:-100]
        image.finish()
        assert storage.getvalue() == data
        image.device.write_at(_SIZE - 512, bytes(512))
        assert storage.getvalue() == data[:-512] + bytes(512)


def test_zeros_over_data_at_the_end_stay_zeros() -> None:
    storage, data = MemoryStorage(), _data()
    with begin(plan_create(storage, _SIZE, format="raw")) as image:
        image.device.write_at(0, data)
        image.device.write_zeroes(1024, _SIZE - 1024)
        image.finish()
    assert storage.getvalue() == data[:1024] + bytes(_SIZE - 1024)


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_preallocated_space_ends_before_it(tmp_path: Path, preallocation: str) -> None:
    path = tmp_path / "image.raw"
    options = {"preallocation": preallocation}
    with begin(plan_create(path, 1 << 20, format="raw", options=options)) as image:
        assert path.stat().st_size == (1 << 20) - 512
        image.finish()
    assert path.stat().st_size == 1 << 20
