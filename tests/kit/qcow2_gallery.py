"""Hand-made qcow2 images of every kind, for tests that go through all of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.kit.qcow2 import CRYPTO, ImageBuilder


def _mixed(**options: Any) -> Callable[[], ImageBuilder]:
    """An image with some of everything that its options allow, in no order."""

    def make() -> ImageBuilder:
        bits = options.get("cluster_bits", 16)
        builder = ImageBuilder((24 << bits) + 1024, **options)
        compresses = builder.refcount_order > 2
        for index in (7, 0, 3, 2, 1):
            builder.data(index)
        if builder.version >= 3:
            builder.zero(4)
            builder.zero(5, host=True)
        if compresses:
            for index in (9, 8, 10, 14, 13):
                builder.compressed(index, skip=index * 7 % 5)
        if builder.extended_l2:
            builder.subclusters(15, "DZ.D" * 8)
            builder.subclusters(16, "." * 30 + "ZD")
            builder.subclusters(17, "Z." * 16, host=False)
        if builder.refcount_order:
            builder.snapshot(b"1", b"first", extra=16)
            builder.data(3)
            builder.unmap(7)
            builder.snapshot(b"2", b"second")
        if compresses:
            builder.compressed(20)
        builder.data(builder.clusters - 1)
        return builder

    return make


GALLERY: dict[str, Callable[[], ImageBuilder]] = {
    "v2": _mixed(version=2),
    "v3": _mixed(),
    "512": _mixed(cluster_bits=9),
    "1k": _mixed(cluster_bits=10),
    "4k": _mixed(cluster_bits=12),
    "2M": _mixed(cluster_bits=21),
    "extended": _mixed(cluster_bits=14, extended_l2=True),
    "extended-64k": _mixed(extended_l2=True, refcount_order=6),
    "zstd": _mixed(compression="zstd"),
    "zstd-extended": _mixed(compression="zstd", extended_l2=True, cluster_bits=15),
    "refcount-1": _mixed(refcount_order=0, cluster_bits=12),
    "refcount-2": _mixed(refcount_order=1, cluster_bits=12),
    "refcount-4": _mixed(refcount_order=2, cluster_bits=12),
    "refcount-8": _mixed(refcount_order=3, cluster_bits=12),
    "refcount-32": _mixed(refcount_order=5, cluster_bits=12),
    "refcount-64": _mixed(refcount_order=6, cluster_bits=12),
    "header-104": _mixed(header_length=104),
    "header-111": _mixed(header_length=111),
    "header-400": _mixed(header_length=400, cluster_bits=12),
    "l1-too-long": _mixed(l1_extra=100),
    "unknown": _mixed(
        cluster_bits=12,
        extensions=[(0x11223344, b"unknown to all"), (0x55667788, b"")],
        header={"compatible_features": 1 << 50, "autoclear_features": 1 << 51},
    ),
}


def encrypted() -> ImageBuilder:
    """An image with a LUKS 1 header, of which all but the contents can be looked at."""
    header = struct.pack(
        ">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256",
        4040, 64, b"d" * 20, b"s" * 32, 1234, b"ea0e1979-d4c6-43bc-86c1-30e84ffda137",
    )  # fmt: skip
    for slot in range(8):
        header += struct.pack(">II32sII", 0x00AC71F3, 44949, b"s" * 32, 8 + 504 * slot, 4000)
    builder = ImageBuilder(1 << 20, header={"crypt_method": 2})
    where = builder.place(header, "luks")
    builder.extensions = [(CRYPTO, struct.pack(">QQ", where, 2068480))]
    builder.allocate(2068480)
    for index in (0, 3, 4):
        builder.data(index)
    return builder
