"""qcow2 images against the contract of all formats: QEMU's, and ones made byte by byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tests.kit import referee
from tests.kit.contract import Content, ReadContract, render
from tests.kit.qcow2 import ImageBuilder

_STANDARD: dict[str, dict[str, Any]] = {
    "v2": {"compat": "0.10"},
    "v3": {},
    "512": {"cluster_size": 512},
    "4k": {"cluster_size": 4096},
    "2M": {"cluster_size": 2 << 20},
    "extended": {"extended_l2": True, "cluster_size": 65536},
    "extended-2M": {"extended_l2": True, "cluster_size": 2 << 20},
    "refcount-1": {"refcount_bits": 1},
    "refcount-64": {"refcount_bits": 64},
    "preallocated": {"preallocation": "metadata"},
    "v2-backed": {"compat": "0.10", "backed": True},
    "backed": {"backed": True},
    "extended-backed": {"extended_l2": True, "backed": True},
    "raw-backed": {"backed": True, "backing": "raw"},
    "data-file": {"data_file": True},
    "data-file-raw": {"data_file": True, "data_file_raw": True},
    "zlib": {"compressed": True},
    "zlib-512": {"compressed": True, "cluster_size": 512},
    "zlib-2M": {"compressed": True, "cluster_size": 2 << 20},
    "zstd": {"compressed": True, "compression_type": "zstd"},
    "zstd-extended": {
        "compressed": True,
        "compression_type": "zstd",
        "extended_l2": True,
        "cluster_size": 16384,
    },
    "zlib-backed": {"compressed": True, "backed": True},
}


class TestQemuImages(ReadContract):
    format = "qcow2"
    option_sets = _STANDARD
    opaque = frozenset({"data-file-raw"})

    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        chosen = dict(options)
        image, raw = folder / "disk.qcow2", folder / "content.raw"
        if chosen.get("data_file"):
            chosen["data_file"] = folder / "disk.data"
        compressed, backed = chosen.pop("compressed", False), chosen.pop("backed", False)
        below = chosen.pop("backing", "qcow2")
        half = len(content) // 2 if backed else len(content)
        raw.write_bytes(render(content[:half], size))
        if not backed:
            referee.convert(
                raw, image, format="raw", to="qcow2", options=chosen, compress=compressed
            )
            return image
        base = folder / "base.image"
        referee.convert(raw, base, format="raw", to=below, compress=compressed)
        referee.create(image, size, options=chosen, backing=base, backing_format=below)
        commands = []
        for number, (offset, data) in enumerate(content[half:]):
            piece = folder / f"piece-{number}"
            piece.write_bytes(data)
            commands.append(f"write -s {piece} {offset} {len(data)}")
        referee.io(image, commands)
        return image


class TestBuiltImages(ReadContract):
    """No tool is needed for these, and some QEMU would never write."""

    format = "qcow2"
    option_sets: ClassVar = {
        "v2": {"version": 2},
        "512": {"cluster_bits": 9},
        "scattered": {"cluster_bits": 12, "backwards": True},
        "2M": {"cluster_bits": 21},
        "extended": {"cluster_bits": 14, "extended_l2": True},
        "data-file": {"external": True},
        "zlib": {"compressed": True, "cluster_bits": 12},
        "zstd": {"compressed": True, "compression": "zstd", "cluster_bits": 14},
        "zstd-scattered": {
            "compressed": True,
            "compression": "zstd",
            "backwards": True,
            "extended_l2": True,
        },
    }

    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        chosen = dict(options)
        backwards, compressed = chosen.pop("backwards", False), chosen.pop("compressed", False)
        builder = ImageBuilder(size, **chosen)
        if builder.external:
            builder.extensions = [(0x44415441, bytes(folder / "disk.data"))]
        disk = render(content, size)
        indexes = range(builder.clusters)
        for index in reversed(indexes) if backwards else indexes:
            start = index * builder.cluster_size
            cluster = disk[start : start + builder.cluster_size].ljust(builder.cluster_size, b"\0")
            if any(cluster):
                if compressed and index % 5:
                    builder.compressed(index, cluster, skip=index % 3)
                else:
                    builder.data(index, cluster)
        image = folder / "disk.qcow2"
        image.write_bytes(builder.build())
        if builder.external:
            (folder / "disk.data").write_bytes(builder.data_file.ljust(size, b"\0"))
        return image
