"""Compression of single clusters: deflate as QEMU writes it, and zstd.

Decompression always has a limit: a cluster's worth of output, whatever the input says. All calls
release the GIL, and each is safe from any number of threads.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from array import array
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, cast

from imgtool.errors import BadOption, CorruptImage

if TYPE_CHECKING:
    import zstandard
    from _typeshed import ReadableBuffer

#: Raw deflate with a 4 KiB window: QEMU inflates with no more than that.
_WINDOW = -12

#: A quarter faster than zstd's own default, 3, and between one and two percent larger.
DEFAULT_ZSTD_LEVEL = 2
_MAX_ZSTD_WINDOW = 1 << 27
#: The magic number of zstd frames that hold nothing, whose last four bits are free, and the type of
#: a block that is one byte many times.
_SKIPPABLE = 0x184D2A50
_RLE_BLOCK = 1

#: What the decompressors raise for bytes that are no deflate stream.
_BAD_STREAM: tuple[type[Exception], ...] = (zlib.error, ValueError)

_isal: ModuleType | None
try:
    from isal import isal_zlib

    _isal = isal_zlib
    _BAD_STREAM = (*_BAD_STREAM, cast("type[Exception]", isal_zlib.error))
except ImportError:  # a platform without a wheel: zlib does it, slower
    _isal = None

_inflate_whole: Callable[[ReadableBuffer, int], bytes | bytearray] | None
try:
    from deflate import DeflateError, deflate_decompress

    _inflate_whole = deflate_decompress
    _NOT_WHOLE: type[Exception] = DeflateError
except ImportError:
    _inflate_whole, _NOT_WHOLE = None, zlib.error

_per_thread = threading.local()


def check_level(method: str, level: int) -> None:
    """Raise :class:`BadOption` for a level that ``method``, ``zlib`` or ``zstd``, does not have."""
    lowest, highest = 0, 9
    if method == "zstd":
        import zstandard

        lowest, highest = 1, zstandard.MAX_COMPRESSION_LEVEL
    if not lowest <= level <= highest:
        raise BadOption(
            f"A {method} compression level is between {lowest} and {highest}, not {level}"
        )


def deflate(data: ReadableBuffer, level: int | None = None) -> bytes:
    """Compress into a raw deflate stream. Levels 0 to 9 are zlib's; None is the fast default."""
    if level is not None:
        check_level("zlib", level)
    if level is None and _isal is not None:
        compressor = _isal.compressobj(_isal.ISAL_BEST_COMPRESSION, _isal.DEFLATED, _WINDOW)
        return bytes(compressor.compress(data) + compressor.flush())
    chosen = zlib.Z_DEFAULT_COMPRESSION if level is None else level
    plain = zlib.compressobj(chosen, zlib.DEFLATED, _WINDOW)
    return plain.compress(data) + plain.flush()


def inflate(data: ReadableBuffer, limit: int) -> bytes | bytearray:
    """Decompress a raw deflate stream to at most ``limit`` bytes; trailing bytes are ignored.

    Raises :class:`CorruptImage` for anything that is not such a stream.
    """
    if _inflate_whole is not None:
        # libdeflate is the fastest, and knows only streams that end within the limit.
        with contextlib.suppress(_NOT_WHOLE):
            return _inflate_whole(data, limit)
    try:
        engine = zlib if _isal is None else _isal
        return bytes(engine.decompressobj(_WINDOW).decompress(data, limit))
    except _BAD_STREAM as error:
        raise CorruptImage("Compressed data is not a deflate stream") from error


def zstd_compress_all(pieces: Sequence[memoryview], level: int | None = None) -> list[bytes]:
    """Compress each piece into one zstd frame."""
    import zstandard

    if level is not None:
        check_level("zstd", level)
    chosen = DEFAULT_ZSTD_LEVEL if level is None else level
    # A compressor is costly to make and not safe to share.
    compressors: dict[int, zstandard.ZstdCompressor] = _per_thread.__dict__.setdefault("zstd", {})
    compressor = compressors.get(chosen)
    if compressor is None:
        compressor = compressors[chosen] = zstandard.ZstdCompressor(level=chosen)
    if len(pieces) > 1 and "multi_compress_to_buffer" in zstandard.backend_features:
        frames = compressor.multi_compress_to_buffer(list(pieces))
        return [frames[number].tobytes() for number in range(len(frames))]
    return [compressor.compress(piece) for piece in pieces]


def zstd_decompress_all(
    pieces: Sequence[memoryview], length: int
) -> Sequence[ReadableBuffer] | None:
    """Decompress pieces that are each one frame of ``length`` bytes, or what follows that.

    Returns None if that is not so, or cannot be done: then they have to be looked at one by one.
    """
    import zstandard

    if "multi_decompress_to_buffer" not in zstandard.backend_features:
        return None
    lengths = memoryview(array("Q", [length]) * len(pieces))
    try:
        found = _decompressor().multi_decompress_to_buffer(list(pieces), decompressed_sizes=lengths)
    except (zstandard.ZstdError, ValueError):
        return None
    # What is typed of zstandard does not say that its segments are buffers.
    return cast("list[ReadableBuffer]", [found[number] for number in range(len(found))])


def zstd_decompress(data: ReadableBuffer, length: int) -> bytes:
    """Decompress zstd frames of which one ends at ``length`` bytes; what follows is ignored.

    Most often there is one. A cluster that ends inside of a frame is refused, as QEMU refuses it:
    what follows a short one belongs to another cluster. Raises :class:`CorruptImage`.
    """
    import zstandard

    view, pieces, left = memoryview(data), list[bytes](), length
    try:
        while left:
            piece = _one_frame(view, left)
            pieces.append(piece)
            left -= len(piece)
            if left:
                view = view[_frame_length(view) :]
    except zstandard.ZstdError as error:
        raise CorruptImage("Compressed data is not a zstd frame of a cluster") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _one_frame(view: memoryview, most: int) -> bytes:
    """What the frame holds that ``view`` begins with: ``most`` bytes, or it is refused."""
    import zstandard

    if _is_skippable(view):
        return b""
    # What a frame says of its size is memory that would be taken for it.
    declared = zstandard.get_frame_parameters(view).content_size
    if declared != zstandard.CONTENTSIZE_UNKNOWN and declared > most:
        raise CorruptImage("Compressed data holds more than a cluster")
    return _decompressor().decompress(view, max_output_size=most, allow_extra_data=True)


def _frame_length(view: memoryview) -> int:
    """The bytes of the whole frame that ``view`` begins with. Source: RFC 8878, section 3.1."""
    import zstandard

    if _is_skippable(view):
        return 8 + int.from_bytes(view[4:8], "little")
    end, last = zstandard.frame_header_size(view), False
    while not last:
        header = int.from_bytes(view[end : end + 3], "little")
        if end + 3 > len(view):
            raise zstandard.ZstdError("the frame is cut off")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        end += 3 + (1 if kind == _RLE_BLOCK else size)
    return end + (4 if zstandard.get_frame_parameters(view).has_checksum else 0)


def _is_skippable(view: memoryview) -> bool:
    return int.from_bytes(view[:4], "little") & ~0xF == _SKIPPABLE


def _decompressor() -> zstandard.ZstdDecompressor:
    """The calling thread's own: it is not safe to share."""
    import zstandard

    decompressor: zstandard.ZstdDecompressor | None = _per_thread.__dict__.get("unzstd")
    if decompressor is None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
        _per_thread.unzstd = decompressor
    return decompressor
