"""raw images against the contract for writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit.write_contract import WriteContract


class TestRaw(WriteContract):
    format = "raw"

    def make(self, folder: Path, size: int, options: Mapping[str, Any]) -> tuple[Path, bytes]:
        path = folder / "disk.raw"
        content = b"before" * (size // 6 + 1)
        path.write_bytes(content[:size])
        return path, content[:size]
