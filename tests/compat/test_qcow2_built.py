"""The hand-made images, read and checked by QEMU: it has to find in them what they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import referee
from tests.kit.qcow2_gallery import GALLERY, encrypted


@pytest.mark.parametrize("name", GALLERY)
def test_gallery(name: str, tmp_path: Path) -> None:
    builder = GALLERY[name]()
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    assert referee.contents(path, "qcow2", tmp_path) == builder.expected()
    found = referee.check(path)
    assert found["exit"] == 0, found
    for number, entry in enumerate(referee.info(path).get("snapshots", [])):
        content = referee.contents(path, "qcow2", tmp_path, snapshot=entry["id"])
        assert content == builder.expected_snapshot(number)


def test_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(encrypted().build())
    found = referee.info(path)
    assert found["encrypted"]
    assert found["format-specific"]["data"]["encrypt"]["cipher-alg"] == "aes-256"
