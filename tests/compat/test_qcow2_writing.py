"""qcow2 images against the contract for writing, and what was written judged by QEMU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.kit import referee
from tests.kit.oracle import OracleDisk
from tests.kit.write_contract import WriteContract


class TestQcow2(WriteContract):
    format = "qcow2"
    option_sets: ClassVar = {
        "v3": {},
        "v2": {"compat": "0.10"},
        "512": {"cluster_size": 512},
        "4k-refcount-1": {"cluster_size": 4096, "refcount_bits": 1},
        "2M": {"cluster_size": 2 << 20},
        "extended": {"extended_l2": True},
        "extended-2M": {"extended_l2": True, "cluster_size": 2 << 20},
        "lazy": {"lazy_refcounts": True},
        "metadata": {"preallocation": "metadata"},
        "data-file": {"data_file": True},
        "data-file-raw": {"data_file": True, "data_file_raw": True},
        "backed": {"backed": True, "cluster_size": 8192},
        "v2-backed": {"backed": True, "compat": "0.10"},
        "extended-backed": {"backed": True, "extended_l2": True},
        "compressed": {"compressed": True, "cluster_size": 16384},
        "compressed-extended": {"compressed": True, "extended_l2": True},
        "snapshot": {"snapshot": True, "cluster_size": 8192},
    }

    def make(self, folder: Path, size: int, options: Mapping[str, Any]) -> tuple[Path, bytes]:
        chosen = dict(options)
        image, raw = folder / "disk.qcow2", folder / "content.raw"
        backed, compressed = chosen.pop("backed", False), chosen.pop("compressed", False)
        snapshot = chosen.pop("snapshot", False)
        if chosen.get("data_file"):
            chosen["data_file"] = folder / "disk.data"
        content = bytes(size)
        if backed or compressed or snapshot:
            content = (b"before it was written to\n" * (size // 25 + 1))[: size - 400_000]
            raw.write_bytes(content.ljust(size, b"\0"))
            content = raw.read_bytes()
        if backed:
            # The backing image is shorter than the one on top of it.
            raw.write_bytes(content[: size - 512 * 700])
            referee.create(image, size, options=chosen, backing=raw, backing_format="raw")
        elif compressed or snapshot:
            referee.convert(
                raw, image, format="raw", to="qcow2", options=chosen, compress=compressed
            )
        else:
            referee.create(image, size, options=chosen)
        if snapshot:
            referee.must("qemu-img", "snapshot", "-c", "before", image)
        return image, content

    def judge(self, path: Path, oracle: OracleDisk) -> None:
        found = referee.check(path)
        assert found["exit"] == 0, found
        with tempfile.TemporaryDirectory() as folder:
            assert oracle.agrees(referee.contents(path, "qcow2", Path(folder)))
            for entry in referee.info(path).get("snapshots", []):
                kept = referee.contents(path, "qcow2", Path(folder), snapshot=entry["id"])
                # qemu-img shows a snapshot with the size that the disk has now.
                before = b"before it was written to\n" * 40
                assert kept[:1000] == before[: len(kept)]
