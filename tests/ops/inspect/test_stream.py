"""Inspecting what comes past once: the same verdict, however it is cut, in bounded memory."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imgtool
from imgtool import registry
from imgtool.format import Format
from imgtool.inspection import Severity
from imgtool.ops.inspect.stream import HEAD_WINDOW
from tests.kit import foreign
from tests.kit.corrupt import put
from tests.kit.effort import effort
from tests.kit.qcow2 import COPIED, ImageBuilder
from tests.ops.inspect.judging import FEW, NAME, SOUND, as_stream, codes, judge, qcow2
from tests.ops.inspect.test_hostile import HOSTILE
from tests.ops.inspect.test_polyglots import POLYGLOTS

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ALL: dict[str, Callable[[], bytes]] = {
    **{name: SOUND[name][1] for name in FEW},
    **{f"hostile {name}": make for name, (make, _) in HOSTILE.items()},
    **{f"polyglot {name}": make for name, (make, _, _) in POLYGLOTS.items()},
}
_IMAGES: dict[str, bytes] = {}


def _image(name: str) -> bytes:
    if name not in _IMAGES:
        _IMAGES[name] = _ALL[name]()
    return _IMAGES[name]


@pytest.mark.parametrize("name", [name for name in FEW if not name.startswith("vhd")])
def test_small_pieces(name: str) -> None:
    # The structure is at the start; a few bytes at a time over all of it would take long.
    image = _image(name)
    short = image[: 40 << 10] + image[-4096:]
    assert as_stream(short, 13) == as_stream(short, len(short))


def test_single_bytes() -> None:
    image = foreign.qcow()
    assert as_stream(image, 1) == judge(image)


@settings(max_examples=effort(40))
@given(name=st.sampled_from(sorted(_ALL)), cuts=st.lists(st.integers(1, 1 << 20), max_size=9))
def test_any_pieces(name: str, cuts: list[int]) -> None:
    image = _image(name)
    inspector = imgtool.Inspector(filename=NAME)
    start, numbers = 0, [*cuts, 1 << 20]
    while start < len(image):
        piece = image[start : start + numbers[0]]
        inspector.feed(piece)
        start += len(piece)
        if len(numbers) > 1:
            del numbers[0]
    assert inspector.position == len(image)
    assert inspector.finish() == as_stream(image, max(1, len(image)))


def test_any_buffer_may_be_fed() -> None:
    from array import array

    image = qcow2()
    inspector = imgtool.Inspector(filename=NAME)
    inspector.feed(b"")
    inspector.feed(bytearray(image[:4096]))
    inspector.feed(array("Q", image[4096:8192]))
    inspector.feed(memoryview(image)[8192:])
    assert inspector.finish() == judge(image)


def test_after_the_end() -> None:
    inspector = imgtool.Inspector()
    inspector.finish()
    with pytest.raises(ValueError, match="finished"):
        inspector.feed(b"x")
    with pytest.raises(ValueError, match="finished"):
        inspector.finish()


@pytest.mark.parametrize("name", ["backing absolute", "unknown bits", "flat", "qed backing"])
def test_unsafe_is_known_early(name: str) -> None:
    image = HOSTILE[name][0]()
    inspector = imgtool.Inspector()
    assert not inspector.unsafe
    inspector.feed(image[: 128 << 10])
    inspector.feed(image[128 << 10 :])
    early = inspector.unsafe
    assert not inspector.finish().safe
    # A description alone may be as long as a megabyte.
    assert early or len(image) < 64 << 10


def test_what_is_not_expected_is_known_early() -> None:
    image = qcow2()[: 64 << 10]
    for options in ({"format": "raw"}, {"format": "vmdk"}, {"max_virtual_size": 1 << 20}):
        inspector = imgtool.Inspector(**options)  # type: ignore[arg-type]
        inspector.feed(image)
        assert inspector.unsafe
    inspector = imgtool.Inspector()
    inspector.feed(POLYGLOTS["iso with qcow2 in front"][0]()[: 64 << 10])
    assert inspector.unsafe
    inspector = imgtool.Inspector(format="qcow2", max_virtual_size=foreign.SIZE)
    inspector.feed(image)
    assert not inspector.unsafe


_ISO = foreign.iso()


@pytest.mark.parametrize(
    ("head", "options", "pieces"),
    [
        # What has no head of a format is raw, or ends as VHD disks do: too large either way.
        (b"", {"max_virtual_size": 4 << 20}, 5),
        (_ISO, {"max_virtual_size": 4 << 20}, 5),
        (b"", {"max_virtual_size": 4 << 20, "format": "vhd"}, 5),
        (b"", {"format": "qcow2"}, 1),
        (b"", {"format": "gpt"}, 1),
        (foreign.mbr_disk()[:512], {"format": "gpt"}, 1),
        (_ISO, {"format": "vhd"}, 1),
        (_ISO, {"format": "gpt"}, 1),
        (qcow2()[:65536], {"format": "raw"}, 1),
        (qcow2()[:65536], {"max_virtual_size": 1 << 20}, 1),
    ],
)
def test_what_never_ends(head: bytes, options: dict[str, Any], pieces: int) -> None:
    inspector = imgtool.Inspector(**options)
    stream = _Endless(head)
    fed = 0
    while not inspector.unsafe:
        inspector.feed(stream.read(1 << 20))
        fed += 1
    assert fed == pieces
    assert inspector.unmet
    found = inspector.finish(ended=False)
    assert codes(found) <= {"wrong-format", "virtual-size"}
    assert [item.what for item in found.unchecked] == ["What follows"]
    assert "outside" not in str(found.reasons)
    # What is given a stream reads no more of it.
    assert imgtool.inspect(_Endless(head), **options).reasons == found.reasons


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (foreign.vhd_fixed(), {"format": "vhd", "max_virtual_size": foreign.SIZE}),
        (bytes(foreign.SIZE), {"format": "raw", "max_virtual_size": foreign.SIZE}),
        (foreign.vhd_dynamic(), {"format": "vhd", "max_virtual_size": foreign.SIZE}),
        (foreign.mbr_disk(), {"format": "mbr", "max_virtual_size": foreign.SIZE}),
        (foreign.gpt_disk(), {"format": "gpt", "max_virtual_size": foreign.SIZE}),
        (_ISO, {"format": "raw", "max_virtual_size": len(_ISO)}),
        (qcow2(), {"format": "qcow2", "max_virtual_size": foreign.SIZE}),
    ],
)
def test_what_is_as_expected_is_read_to_its_end(image: bytes, options: dict[str, Any]) -> None:
    inspector = imgtool.Inspector(filename=NAME, **options)
    for start in range(0, len(image), 65536):
        inspector.feed(image[start : start + 65536])
        assert not inspector.unsafe
        assert not inspector.unmet
    assert inspector.finish() == judge(image, **options)


def test_a_format_of_a_plugin_may_be_told_by_its_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Format(
        name="fake", description="", probe=lambda head, tail: 100 * tail.endswith(b"F"), opener=""
    )
    monkeypatch.setattr(registry, "_plugins", lambda: {"fake": fake})
    inspector = imgtool.Inspector(format="fake")
    inspector.feed(bytes(1 << 20))
    assert not inspector.unsafe
    inspector.feed(b"F")
    assert inspector.finish().format == "fake"


def test_what_is_wrong_and_ends_is_read_to_its_end() -> None:
    image = foreign.vhd_fixed()[-4096:]
    found = imgtool.inspect(_Unseekable(image), format="qcow2")
    assert (found.format, found.file_size, found.unchecked) == ("vhd", len(image), ())
    assert "wrong-format" in codes(found)


def test_a_size_that_is_too_large_may_be_accepted() -> None:
    found = imgtool.inspect(
        _Unseekable(bytes(4 << 20)), max_virtual_size=512, accept=("virtual-size",)
    )
    assert (found.verdict, found.file_size) == ("safe", 4 << 20)


def test_what_is_accepted_is_not_known_early() -> None:
    inspector = imgtool.Inspector(accept=("backing-file",))
    inspector.feed(HOSTILE["backing"][0]())
    assert not inspector.unsafe
    assert inspector.finish().safe


class _Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False


class _Endless(io.RawIOBase):
    """A stream that begins with ``head``, and goes on with zeros."""

    def __init__(self, head: bytes) -> None:
        self._head = io.BytesIO(head)

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        return self._head.read(size).ljust(size, b"\0")


def test_what_lies_behind_is_not_safe() -> None:
    # Its L1 table is at the end, and points to an L2 table that has gone by.
    builder = ImageBuilder(8 << 20, cluster_bits=21)
    builder.data(0)
    image = builder.build()
    found = as_stream(image, 1 << 20)
    assert not found.safe
    assert [item.what for item in found.unchecked] == ["The first L2 table"]
    assert all("behind" in item.reason for item in found.unchecked)
    assert "The first L2 table could not be checked" in found.reasons[0]


def test_l2_tables_that_have_gone_by() -> None:
    # The first is kept, the second is behind; a third, which lies ahead, is looked at.
    builder = ImageBuilder(2 << 30, cluster_bits=16)
    for index in (0, 8192, 16384):
        builder.data(index)
    image = builder.build().ljust(HEAD_WINDOW, b"\0")
    l1 = int.from_bytes(image[40:48], "big")
    entries = list(struct.unpack(">3Q", image[l1 : l1 + 24]))
    tables = [image[entry & ~COPIED :][:65536] for entry in entries]
    outside = struct.pack(">Q", 1 << 40) + bytes(65528)
    places = [HEAD_WINDOW, HEAD_WINDOW + (1 << 20), HEAD_WINDOW + (3 << 20)]

    def moved(second: bytes, third: bytes) -> bytes:
        whole = put(image, places[0], second)
        whole = put(whole, places[1], struct.pack(">3Q", entries[0], places[0], places[2]))
        whole = put(whole, 40, struct.pack(">Q", places[1]))
        return put(whole, places[2], third)

    sound = moved(tables[1], tables[2])
    found = as_stream(sound, 4096)
    assert (found.verdict, found.unchecked) == ("safe", ())
    assert codes(found, Severity.WARNING) == {"l2-behind"}
    assert "l2-behind" not in codes(judge(sound), Severity.WARNING)
    assert codes(judge(moved(outside, tables[2]))) == {"data-outside"}
    assert codes(as_stream(moved(tables[1], outside), 4096)) == {"data-outside"}


def test_what_lies_behind_and_is_kept() -> None:
    # Behind the stream's position, but in the window at its start.
    image = qcow2(b"QFI\xfb\0\0\0\3")
    l1 = int.from_bytes(image[40:48], "big")
    moved = put(image, len(image), image[l1 : l1 + 8])
    moved = put(moved, 40, len(image).to_bytes(8, "big"))
    assert len(image) < HEAD_WINDOW
    found = as_stream(moved, 4096)
    assert [claim.format for claim in found.claims] == ["qcow2", "qcow2"]


def test_memory_is_bounded() -> None:
    piece = bytes(1 << 20)
    inspector = imgtool.Inspector()
    inspector.feed(foreign.mbr_disk())
    tracemalloc.start()
    try:
        for _ in range(64):
            inspector.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        assert inspector.finish().safe
    finally:
        tracemalloc.stop()


def test_hostile_lengths_take_no_memory() -> None:
    # What an image asks for is taken as it comes, never in advance.
    for name in ("L1 outside", "GPT table too large", "qcow L1 outside", "vhdx unknown region"):
        image = HOSTILE[name][0]()[: 1 << 20]
        tracemalloc.start()
        as_stream(image, 65536)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 << 20


def test_a_pipe() -> None:
    image = qcow2()
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(image)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        found = imgtool.inspect(file, format="qcow2")
    thread.join()
    assert (found.verdict, found.file_size) == ("safe", len(image))


def test_a_file_object_is_left_open() -> None:
    with io.BytesIO(qcow2()) as file:
        assert imgtool.inspect(file).format == "qcow2"
        assert file.seek(0) == 0
    with pytest.raises(TypeError):
        imgtool.inspect(io.StringIO("text"))  # type: ignore[arg-type]


class _Pausing(io.RawIOBase):
    """A stream set not to wait, which has nothing after its first bytes, for now."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        return self._data.readinto(buffer) or None


@pytest.mark.parametrize("first", [0, 100, 1 << 20])
def test_a_pause_is_not_the_end(first: int) -> None:
    # There is nothing to say against the first bytes of a disk of zeros.
    with pytest.raises(BlockingIOError, match="not to wait"):
        imgtool.inspect(_Pausing(bytes(first)))
    with pytest.raises(BlockingIOError):
        imgtool.inspect(io.BufferedReader(_Pausing(bytes(first))))


def test_a_reader_that_fails() -> None:
    class Upload(io.RawIOBase):
        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        imgtool.inspect(Upload())
