"""Compression: streams that QEMU reads, and limits that hold whatever the bytes are."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool import codecs
from imgtool.errors import BadOption, CorruptImage
from tests.kit.effort import effort

KiB = 1 << 10

Encode = Callable[[bytes], bytes]
Decode = Callable[[bytes, int], bytes]


def _zstd(data: bytes, level: int | None = None) -> bytes:
    (packed,) = codecs.zstd_compress_all([memoryview(data)], level)
    return packed


CODECS: dict[str, tuple[Encode, Decode]] = {
    "zlib": (codecs.deflate, codecs.inflate),
    "zlib-0": (lambda data: codecs.deflate(data, 0), codecs.inflate),
    "zlib-9": (lambda data: codecs.deflate(data, 9), codecs.inflate),
    "zstd": (_zstd, codecs.zstd_decompress),
    "zstd-1": (lambda data: _zstd(data, 1), codecs.zstd_decompress),
    "zstd-22": (lambda data: _zstd(data, 22), codecs.zstd_decompress),
}


@pytest.fixture(params=["isal", "plain"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ISA-L, and a platform that has none."""
    if request.param == "isal":
        assert codecs._isal is not None
    else:
        monkeypatch.setattr(codecs, "_isal", None)
    return str(request.param)


def samples() -> list[bytes]:
    chance = random.Random(4)
    # Repeats that lie further back than 4 KiB tempt a compressor to use a larger window.
    far = chance.randbytes(5 * KiB)
    return [
        bytes(512),
        b"a" * 65536,
        chance.randbytes(65536),
        far * 20,
        bytes(range(256)) * 256,
        bytes(2 << 20),
    ]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.usefixtures("engine")
def test_there_and_back(codec: str) -> None:
    encode, decode = CODECS[codec]
    for data in samples():
        for given_as in (data, bytearray(data), memoryview(data)):
            packed = encode(given_as)  # type: ignore[arg-type]
            assert isinstance(packed, bytes)
            assert decode(packed, len(data)) == data
            # A host file gives whole sectors, with the next cluster's bytes behind these.
            assert decode(memoryview(packed + b"\xa5" * 700), len(data)) == data  # type: ignore[arg-type]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("level", [None, *range(10)])
def test_deflate_keeps_to_the_window_that_qemu_inflates_with(level: int | None) -> None:
    for data in samples():
        packed = codecs.deflate(data, level)
        assert zlib.decompressobj(-12).decompress(packed) == data


def test_levels_matter() -> None:
    data = b"".join(b"%d little words " % number for number in range(4000))
    assert (
        len(codecs.deflate(data, 9)) < len(codecs.deflate(data, 1)) < len(codecs.deflate(data, 0))
    )
    assert len(_zstd(data, 22)) < len(_zstd(data, 1))
    assert len(codecs.deflate(data)) < len(codecs.deflate(data, 0)) / 3


@pytest.mark.parametrize("level", [-1, 10, 99])
def test_zlib_levels_there_are_not(level: int) -> None:
    with pytest.raises(BadOption, match="between 0 and 9"):
        codecs.deflate(b"x", level)
    with pytest.raises(BadOption):
        codecs.check_level("zlib", level)


@pytest.mark.parametrize("level", [-5, 0, 23])
def test_zstd_levels_there_are_not(level: int) -> None:
    with pytest.raises(BadOption, match="between 1 and 22"):
        _zstd(b"x", level)
    with pytest.raises(BadOption):
        codecs.check_level("zstd", level)


@pytest.mark.usefixtures("engine")
def test_bombs_of_deflate_stop_at_the_limit() -> None:
    bomb = codecs.deflate(bytes(32 << 20))
    assert len(bomb) < 1 << 20
    for limit in (512, 65536, 2 << 20):
        assert codecs.inflate(bomb, limit) == bytes(limit)


def test_bombs_of_zstd_are_refused() -> None:
    engine = zstandard.ZstdCompressor().compressobj()
    unsaid = engine.compress(bytes(32 << 20)) + engine.flush()
    for bomb in (_zstd(bytes(32 << 20)), unsaid):
        assert len(bomb) < 1 << 20
        for limit in (512, 65536, 2 << 20):
            with pytest.raises(CorruptImage):
                codecs.zstd_decompress(bomb, limit)


def test_zstd_frames_of_unknown_size() -> None:
    # This is how QEMU writes them: as a stream, with no size in the frame's header.
    for data in samples():
        engine = zstandard.ZstdCompressor().compressobj()
        packed = engine.compress(data) + engine.flush()
        assert zstandard.get_frame_parameters(packed).content_size == zstandard.CONTENTSIZE_UNKNOWN
        assert codecs.zstd_decompress(packed + b"\xee" * 100, len(data)) == data
        # A cluster that ends inside of the frame, or that the frame does not fill.
        for length in (len(data) // 2, len(data) - 1, len(data) + 1, len(data) * 2):
            with pytest.raises(CorruptImage):
                codecs.zstd_decompress(packed, length)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("said", [False, True])
def test_zstd_several_frames(checksum: bool, said: bool) -> None:
    def frame(data: bytes) -> bytes:
        return zstandard.ZstdCompressor(write_content_size=said, write_checksum=checksum).compress(
            data
        )

    skipped = (0x184D2A5C).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"nothing"
    for data in samples():
        first, rest = data[:300], data[300:]
        frames = [skipped, frame(first), frame(b""), skipped, frame(rest), b"what follows"]
        assert codecs.zstd_decompress(b"".join(frames), len(data)) == data
        assert codecs.zstd_decompress(b"".join(frames), 300) == first
        for length in (1, 299, 301, len(data) - 1, len(data) + 1):
            with pytest.raises(CorruptImage):
                codecs.zstd_decompress(b"".join(frames), length)
        # A short one, and then the next cluster.
        with pytest.raises(CorruptImage):
            codecs.zstd_decompress(frame(first) + frame(data), len(data))
    for nothing in (skipped, skipped[:-1], frame(b""), frame(b"") * 3, skipped[:4]):
        with pytest.raises(CorruptImage):
            codecs.zstd_decompress(nothing, 512)


def test_zstd_window_that_takes_too_much_memory() -> None:
    huge = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    engine = zstandard.ZstdCompressor(compression_params=huge).compressobj()
    packed = engine.compress(bytes(65536)) + engine.flush()
    with pytest.raises(CorruptImage):
        codecs.zstd_decompress(packed, 65536)


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
@pytest.mark.usefixtures("engine")
def test_what_is_cut_short_is_short_or_refused(codec: str) -> None:
    encode, decode = CODECS[codec]
    data = random.Random(1).randbytes(4096)
    packed = encode(data)
    for length in (0, 1, 2, 5, 100, len(packed) // 2, len(packed) - 1):
        try:
            found = decode(packed[:length], len(data))
        except CorruptImage:
            continue
        assert len(found) < len(data)
        assert data.startswith(found)


@settings(max_examples=effort(200))
@given(data=st.binary(max_size=300), limit=st.sampled_from([1, 512, 65536]))
def test_any_bytes(data: bytes, limit: int) -> None:
    for decode in (codecs.inflate, codecs.zstd_decompress):
        for engine in (codecs._isal, None):
            saved, codecs._isal = codecs._isal, engine
            try:
                assert len(decode(data, limit)) <= limit
            except CorruptImage:
                pass
            finally:
                codecs._isal = saved


@settings(max_examples=effort(100))
@given(
    place=st.integers(0, 1 << 16), bit=st.integers(0, 7), codec=st.sampled_from(["zlib", "zstd"])
)
def test_flipped_bits(place: int, bit: int, codec: str) -> None:
    encode, decode = CODECS[codec]
    packed = bytearray(encode(samples()[4]))
    packed[place % len(packed)] ^= 1 << bit
    with contextlib.suppress(CorruptImage):
        assert len(decode(bytes(packed), 65536)) <= 65536


def test_many_threads() -> None:
    data = samples()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            sample = chance.choice(data[:5])
            encode, decode = CODECS[chance.choice(["zlib", "zstd", "zlib-9", "zstd-1"])]
            assert decode(encode(sample), len(sample)) == sample

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()


def test_zstd_all_together_is_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(9)
    clusters = [chance.randbytes(100 + 10 * number) * 8 for number in range(20)]
    clusters = [cluster.ljust(4096, b"\0")[:4096] for cluster in clusters]
    views = [memoryview(cluster) for cluster in clusters]
    frames = codecs.zstd_compress_all(views)
    assert frames == [_zstd(cluster) for cluster in clusters]
    found = codecs.zstd_decompress_all([memoryview(frame + b"\xee" * 9) for frame in frames], 4096)
    assert found is not None
    assert [bytes(memoryview(piece)) for piece in found] == clusters
    monkeypatch.setattr(zstandard, "backend_features", set())
    assert codecs.zstd_compress_all(views) == frames
    assert codecs.zstd_decompress_all([memoryview(frames[0])] * 2, 4096) is None


@pytest.mark.parametrize(
    "bad", [b"", b"no frame", _zstd(bytes(4095)), _zstd(bytes(4097)), _zstd(bytes(4096))[:-3]]
)
def test_zstd_all_together_tells_where_one_is_different(bad: bytes) -> None:
    good = memoryview(_zstd(bytes(4096)))
    assert codecs.zstd_decompress_all([good, good], 4096) is not None
    assert codecs.zstd_decompress_all([good, memoryview(bad), good], 4096) is None
