from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.twins import Twins


@pytest.fixture
def twins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Twins:
    """qemu-img and imgtool, to be run with the same arguments."""
    return Twins(tmp_path, capsys, monkeypatch.chdir)
