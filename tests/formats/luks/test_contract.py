"""luks images that imgtool made, against the contracts of all formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import imgtool
from tests.kit.contract import Content, ReadContract, render
from tests.kit.write_contract import WriteContract

PASSWORD = "a passphrase"


def _make(folder: Path, disk: bytes, options: Mapping[str, Any]) -> Path:
    raw, image = folder / "content.raw", folder / "disk.luks"
    raw.write_bytes(disk)
    imgtool.convert(
        raw, image, source_format="raw", target_password=PASSWORD, iter_time=1, **options
    )
    return image


class TestReading(ReadContract):
    format = "luks"
    password = PASSWORD
    option_sets: ClassVar = {"xts": {}, "cbc": {"cipher_mode": "cbc", "ivgen_alg": "essiv"}}
    opaque = frozenset(option_sets)

    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        return _make(folder, render(content, size), options)


class TestWriting(WriteContract):
    format = "luks"
    password = PASSWORD
    option_sets: ClassVar = {"xts": {}}

    def make(self, folder: Path, size: int, options: Mapping[str, Any]) -> tuple[Path, bytes]:
        return _make(folder, bytes(size), options), bytes(size)
