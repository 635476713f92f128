"""raw images against the contract of all formats, whole files and parts of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.kit.contract import Content, ReadContract, render


class TestRaw(ReadContract):
    format = "raw"
    option_sets: ClassVar = {"written": {}, "sparse": {"sparse": True}}
    opaque = frozenset({"written"})

    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        path = folder / "disk.raw"
        if not options.get("sparse"):
            path.write_bytes(render(content, size))
            return path
        with path.open("wb") as file:
            for offset, data in content:
                file.seek(offset)
                file.write(data)
            file.truncate(size)
        return path
