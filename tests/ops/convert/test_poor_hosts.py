"""convert and check where the host has none of Linux's own calls."""

from __future__ import annotations

from pathlib import Path

import pytest

import imgtool
from tests.ops.convert.disks import MiB, noise, write_raw
from tests.storage.hosts import BAREST, without

#: A host has both or neither.
SEEKING = ("SEEK_DATA", "SEEK_HOLE")
ALONE = [(call,) for call in BAREST if call not in SEEKING]
PARTS = ((0, noise(100_000)), (MiB, bytes(MiB)), (5 * MiB, noise(MiB)), (8 * MiB - 512, b"e" * 512))


@pytest.mark.filterwarnings("ignore::imgtool.storage.locks.UnlockedWarning")
@pytest.mark.parametrize("missing", [*ALONE, SEEKING, BAREST], ids="-".join)
def test_there_and_back(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_raw(tmp_path / "a.raw", 8 * MiB, *PARTS)
    imgtool.convert(source, tmp_path / "whole.qcow2", compress=True)
    with monkeypatch.context() as patch:
        without(patch, *missing)
        imgtool.convert(source, tmp_path / "b.qcow2", compress=True)
        imgtool.convert(tmp_path / "b.qcow2", tmp_path / "c.qcow2")
        imgtool.convert(tmp_path / "c.qcow2", tmp_path / "d.raw")
        assert imgtool.check(tmp_path / "c.qcow2").corruptions == 0
        assert imgtool.compare(source, tmp_path / "c.qcow2").identical
    assert (tmp_path / "b.qcow2").read_bytes() == (tmp_path / "whole.qcow2").read_bytes()
    assert (tmp_path / "d.raw").read_bytes() == source.read_bytes()
