"""Compressed clusters that are not what they should be, next to qemu-img: refused, or the same."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import imgtool
from imgtool.cli.main import run
from imgtool.errors import ImageError
from tests.kit import referee
from tests.kit.qcow2 import ImageBuilder, deflate, zstd

CLUSTER = 65536
#: The one among these that is damaged: one that others follow, and the last.
PLACES = (3, 7)


def cluster(number: int) -> bytes:
    return bytes(random.Random(number).choices(b"0123456789abcdef", k=CLUSTER))


def frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def stream(data: bytes) -> bytes:
    """A frame in blocks, without its size, as programs write it that do not know it yet."""
    engine = zstandard.ZstdCompressor().compressobj()
    half = len(data) // 2
    packed = engine.compress(data[:half]) + engine.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return packed + engine.compress(data[half:]) + engine.flush()


def skippable(length: int) -> bytes:
    return struct.pack("<II", 0x184D2A50, length) + bytes(length)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


ZSTD: dict[str, Callable[[bytes], bytes]] = {
    "whole": frame,
    "stream": stream,
    "checksum": lambda data: frame(data, write_checksum=True),
    "checksum-wrong": lambda data: frame(data, write_checksum=True)[:-1] + b"?",
    "short": lambda data: frame(data[: CLUSTER // 2]),
    "short-stream": lambda data: stream(data[: CLUSTER // 2]),
    "short-by-one": lambda data: frame(data[:-1]),
    "long": lambda data: frame(data * 2),
    "long-stream": lambda data: stream(data * 2),
    "long-by-one": lambda data: frame(data + b"!"),
    "two": lambda data: frame(data[:1000]) + frame(data[1000:]),
    "two-streams": lambda data: stream(data[:1000]) + stream(data[1000:]),
    "two-long": lambda data: frame(data[:1000]) + frame(data),
    "three": lambda data: frame(data[:10]) + frame(b"") + frame(data[10:]),
    "skippable": lambda data: skippable(20) + frame(data[:99]) + skippable(3) + frame(data[99:]),
    "skippable-only": lambda data: skippable(200),
    "skippable-cut": lambda data: skippable(1 << 20)[:300],
    "empty": lambda data: frame(b"") * 4,
    "followed": lambda data: frame(data) + b"trailing bytes",
    "cut": lambda data: frame(data)[:-5],
    "flipped": lambda data: flipped(frame(data), 3000),
    "no-frame": lambda data: b"no frame at all".ljust(300, b"."),
}

ZLIB: dict[str, Callable[[bytes], bytes]] = {
    "whole": deflate,
    "short": lambda data: deflate(data[: CLUSTER // 2]),
    "short-by-one": lambda data: deflate(data[:-1]),
    "long": lambda data: deflate(data * 2),
    "followed": lambda data: deflate(data) + b"trailing bytes",
    "cut": lambda data: deflate(data)[:-5],
    "no-stream": lambda data: b"no stream at all".ljust(300, b"."),
}

CASES = [
    *(("zstd", name, make) for name, make in ZSTD.items()),
    *(("zlib", name, make) for name, make in ZLIB.items()),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("codec", "make"),
    [(codec, make) for codec, _, make in CASES],
    ids=[f"{codec}-{name}" for codec, name, _ in CASES],
)
def test_one_among_good_ones(
    tmp_path: Path, codec: str, make: Callable[[bytes], bytes], place: int
) -> None:
    builder = ImageBuilder(8 * CLUSTER, compression=codec)
    for number in range(8):
        data = cluster(number)
        good = zstd if codec == "zstd" else deflate
        payload = make(data) if number == place else good(data)
        builder.compressed(number, data, payload=payload)
    image = tmp_path / "disk.qcow2"
    image.write_bytes(builder.build())
    ours, theirs = tmp_path / "ours.raw", tmp_path / "theirs.raw"
    arguments = ["convert", "-f", "qcow2", "-O", "raw", str(image)]
    done = referee.run("qemu-img", *(Path(word) for word in (*arguments, str(theirs))))
    assert run([*arguments, str(ours)]) == done.returncode
    if done.returncode:
        assert not ours.exists()
        with imgtool.open(image) as disk, pytest.raises(ImageError):
            disk.read_at(place * CLUSTER + 5, 10)
    else:
        assert ours.read_bytes() == theirs.read_bytes()
        with imgtool.open(image) as disk:
            at = place * CLUSTER + 60000
            assert disk.read_at(at, 5000) == theirs.read_bytes()[at : at + 5000]
