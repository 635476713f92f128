"""The contract: what every format's disks must do, whatever they are made of.

A format's test is a subclass of :class:`ReadContract` that says how an image with given contents
is made; ``option_sets`` are the kinds of image to go through. All the tests here then run for it::

    class TestVdi(ReadContract):
        format = "vdi"
        option_sets = {"dynamic": {}, "static": {"static": True}}

        def make(self, folder, content, size, options):
            ...
            return folder / "disk.vdi"
"""

from __future__ import annotations

import abc
import io
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from imgtool import registry
from imgtool.chain import Source
from imgtool.device import BlockDevice
from imgtool.errors import OutOfRange, ReadOnly, WrongFormat
from imgtool.extent import Kind
from imgtool.storage.base import Storage
from imgtool.storage.file import FileStorage
from imgtool.storage.fileobj import FileObjectStorage
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import (
    ANY,
    check_extents,
    check_read,
    check_reads,
    check_threads,
    edges,
    open_disk,
)

Content = list[tuple[int, bytes]]

#: No multiple of any cluster size, but whole sectors, since some formats count those.
SIZE = (9 << 20) + 3 * 512


def sample_content(size: int = SIZE) -> Content:
    """Bytes that differ everywhere, in places that touch, straddle and skip clusters."""
    chance = random.Random(size)
    return [
        (0, chance.randbytes(700)),
        (65536 - 100, chance.randbytes(300)),
        (200_000, chance.randbytes(150_000)),
        (1 << 20, b"\x11" * 65536),
        ((2 << 20) - 512, chance.randbytes(1024)),
        (3 << 20, bytes(1 << 18)),
        ((4 << 20) + 1, chance.randbytes(1)),
        (size - 513, chance.randbytes(513)),
    ]


def render(content: Content, size: int) -> bytes:
    """The disk that ``content`` makes."""
    disk = bytearray(size)
    for offset, data in content:
        disk[offset : offset + len(data)] = data
    return bytes(disk)


_CONTENT = render(sample_content(), SIZE)
_images: dict[tuple[type, str], Path] = {}


class ReadContract(abc.ABC):
    """What reading any image must do. See the module for how to use it."""

    #: The format's name in the registry.
    format: ClassVar[str]
    #: What unlocks the images, if they are encrypted.
    password: ClassVar[str | None] = None
    #: By name: the options with which :meth:`make` is called.
    option_sets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    #: The option sets whose images cannot say where they hold zeros.
    opaque: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def open_disk(cls, source: Source, format: str | None = None, **how: Any) -> BlockDevice:
        """Open an image as :func:`tests.kit.disks.open_disk` does, with the format's password."""
        return open_disk(source, format, password=cls.password, **how)

    @abc.abstractmethod
    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        """Make an image of ``size`` bytes with these contents and zeros; return its path."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", list(self.option_sets), indirect=True)

    @pytest.fixture
    def options(self, request: pytest.FixtureRequest) -> Mapping[str, Any]:
        return self.option_sets[request.param]

    @pytest.fixture
    def content(self) -> bytes:
        return _CONTENT

    @pytest.fixture
    def image(
        self,
        request: pytest.FixtureRequest,
        options: Mapping[str, Any],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Path:
        # One image serves all the tests of a class; none of them changes it.
        key = (type(self), request.node.callspec.params["options"])
        if key not in _images:
            folder = tmp_path_factory.mktemp(self.format)
            _images[key] = self.make(folder, sample_content(), SIZE, options)
        return _images[key]

    @pytest.fixture
    def device(self, image: Path) -> Iterator[BlockDevice]:
        with self.open_disk(image, self.format) as device:
            yield device

    # What it is

    def test_attributes(self, device: BlockDevice, image: Path) -> None:
        assert device.name == str(image)
        assert device.format == self.format
        assert device.read_only
        assert device.size == SIZE

    def test_limits(self, device: BlockDevice) -> None:
        limits = device.limits
        assert limits.alignment > 0
        assert limits.alignment & (limits.alignment - 1) == 0
        assert 0 < limits.preferred <= limits.largest

    def test_children(self, device: BlockDevice) -> None:
        assert device.children
        for role, child in device.children.items():
            assert role
            assert isinstance(child, (Storage, BlockDevice))
        assert device.backing is device.children.get("backing")

    def test_probe_finds_the_format(self, image: Path) -> None:
        with FileStorage.open(image) as storage:
            assert registry.probe(storage).name == self.format

    def test_opened_without_a_format(self, image: Path, content: bytes) -> None:
        with self.open_disk(image) as device:
            assert device.format == self.format
            assert device.read_at(0, 1000) == content[:1000]

    def test_file_of_another_format_is_refused(self, tmp_path: Path) -> None:
        if self.format == "raw":
            pytest.skip("every file is a raw image")
        other = tmp_path / "other"
        for data in (b"", b"x", bytes(4096), bytes(range(256)) * 64):
            other.write_bytes(data)
            with pytest.raises(WrongFormat, match="not in"):
                self.open_disk(other, self.format)

    # Reading

    def test_reads(self, device: BlockDevice, content: bytes) -> None:
        check_reads(device, content)

    def test_reads_around_every_edge(self, device: BlockDevice, content: bytes) -> None:
        for edge in edges(device):
            for start in (edge - 513, edge - 1, edge, edge + 1):
                for length in (1, 2, 512, 5000):
                    if start >= 0 and start + length <= device.size:
                        check_read(device, content, start, length)

    def test_small_steps(self, device: BlockDevice, content: bytes) -> None:
        start = 200_000
        pieces = [device.read_at(start + step, 333) for step in range(0, 333 * 300, 333)]
        assert b"".join(pieces) == content[start : start + 333 * 300]

    @pytest.mark.parametrize("kind", ["bytearray", "view", "numpy", "array"])
    def test_read_into(self, device: BlockDevice, content: bytes, kind: str) -> None:
        length, offset = 70_000, 65_000
        if kind == "numpy":
            import numpy as np

            whole: Any = np.full(length, 0xAA, dtype=np.uint8).reshape(7, 10_000)
            device.read_into(offset, whole)
            found = whole.tobytes()
        elif kind == "array":
            from array import array

            numbers = array("I", bytes(length))
            device.read_into(offset, numbers)
            found = numbers.tobytes()
        else:
            store = bytearray(b"\xaa" * (length + 20))
            view = memoryview(store)[10:-10]
            device.read_into(offset, view if kind == "view" else view.obj[10:-10])
            if kind == "bytearray":
                piece = bytearray(b"\xaa" * length)
                device.read_into(offset, piece)
                found = bytes(piece)
            else:
                assert store[:10] == store[-10:] == b"\xaa" * 10
                found = bytes(view)
        assert found == content[offset : offset + length]

    def test_read_into_needs_a_writable_buffer(self, device: BlockDevice) -> None:
        for offset in (0, 300_000, 3 << 20, 7 << 20):
            with pytest.raises(TypeError):
                device.read_into(offset, bytes(16))  # type: ignore[arg-type]

    def test_nothing_is_read_of_nothing(self, device: BlockDevice) -> None:
        import numpy as np

        for offset in (0, 1, SIZE - 1, SIZE):
            assert device.read_at(offset, 0) == b""
            device.read_into(offset, bytearray())
            device.read_into(offset, np.empty((0, 4), dtype=np.uint8))
            assert list(device.extents(offset, 0)) == []
        assert list(device.extents(SIZE)) == []

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (-1, 1), (-1, 0), (-512, 512), (0, -1), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1),
            (SIZE + 1, 0), (1 << 62, 1), (1 << 64, 0), (-(1 << 64), 1 << 64),
        ],
    )  # fmt: skip
    def test_outside_the_disk(self, device: BlockDevice, offset: int, length: int) -> None:
        with pytest.raises(OutOfRange):
            device.read_at(offset, length)
        with pytest.raises(OutOfRange):
            device.extents(offset, length)
        if 0 <= length <= 2 * SIZE:
            with pytest.raises(OutOfRange):
                device.read_into(offset, bytearray(length))

    def test_many_threads(self, device: BlockDevice, content: bytes) -> None:
        check_threads(device, content)

    # Extents

    def test_extents(self, device: BlockDevice, content: bytes) -> None:
        check_extents(device, content, encrypted=self.password is not None)

    def test_extents_of_parts(self, device: BlockDevice, content: bytes) -> None:
        whole = list(device.extents())
        for offset, length in [(0, 1), (1, 511), (65_535, 2), (100, SIZE - 200), (SIZE - 1, 1)]:
            check_extents(device, content, offset, length, encrypted=self.password is not None)
            expected = [
                extent.clip(offset, offset + length)
                for extent in whole
                if extent.offset < offset + length and extent.end > offset
            ]
            assert list(device.extents(offset, length)) == expected

    def test_zeros_are_known(self, device: BlockDevice, request: pytest.FixtureRequest) -> None:
        # Nothing was ever written to these two megabytes, aligned as the largest clusters are.
        known = all(extent.reads_zero for extent in device.extents(6 << 20, 2 << 20))
        assert known == (request.node.callspec.params["options"] not in self.opaque)

    def test_compressed_extents(self, device: BlockDevice, options: Mapping[str, Any]) -> None:
        kinds = {extent.kind for extent in device.extents()}
        assert (Kind.COMPRESSED in kinds) == bool(options.get("compressed"))

    # Read-only

    def test_writes_are_refused(self, device: BlockDevice) -> None:
        with pytest.raises(ReadOnly):
            device.write_at(0, b"x")
        with pytest.raises(ReadOnly):
            device.write_at(0, b"")
        with pytest.raises(ReadOnly):
            device.write_zeroes(0, 512)
        with pytest.raises(ReadOnly):
            device.discard(0, 512)
        with pytest.raises(ReadOnly):
            device.resize(SIZE * 2)
        device.flush()

    # As a file

    def test_as_file(self, device: BlockDevice, content: bytes) -> None:
        file = device.as_file()
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.tell() == 0
        assert file.read(10) == content[:10]
        assert file.tell() == 10
        assert file.seek(-20, io.SEEK_END) == SIZE - 20
        assert file.read(100) == content[-20:]
        assert file.read(100) == b""
        assert file.seek(5, io.SEEK_CUR) == SIZE + 5
        assert file.read(1) == b""
        assert file.seek(200_000) == 200_000
        buffer = bytearray(150_000)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == content[200_000:350_000]
        file.seek(SIZE - 3)
        assert file.readinto(buffer) == 3
        assert buffer[:3] == content[-3:]
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 7)

    def test_as_file_read_whole(self, device: BlockDevice, content: bytes) -> None:
        with device.as_file() as file:
            assert file.read() == content

    def test_as_file_buffered(self, device: BlockDevice, content: bytes) -> None:
        with io.BufferedReader(device.as_file(), 4096) as file:
            file.seek(65_000)
            assert file.read(1000) == content[65_000:66_000]
            assert file.peek(10)[:10] == content[66_000:66_010]
            file.seek(SIZE - 10)
            assert file.read(100) == content[-10:]
        assert device.read_at(0, 3) == content[:3]

    def test_as_file_positions_are_their_own(self, device: BlockDevice, content: bytes) -> None:
        first, second = device.as_file(), device.as_file()
        first.seek(100)
        assert second.read(5) == content[:5]
        assert first.read(5) == content[100:105]

    def test_as_file_closed(self, device: BlockDevice) -> None:
        file = device.as_file()
        file.close()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
        with pytest.raises(ValueError, match="closed"):
            file.readinto(bytearray(1))
        with pytest.raises(ValueError, match="closed"):
            file.seek(0)
        assert len(device.read_at(0, 1)) == 1

    # Opening and closing

    def test_sources(self, image: Path, content: bytes) -> None:
        # Names that the image stores are absolute, since only files have a directory.
        check = content[199_990:350_010]
        opened: list[Any] = [str(image), image, FileStorage.open(image)]
        opened += [MemoryStorage(image.read_bytes()), io.BytesIO(image.read_bytes())]
        for source in opened:
            with self.open_disk(source, self.format, policy=ANY) as device:
                assert device.read_at(199_990, len(check)) == check
        with image.open("rb") as file:
            with self.open_disk(file, self.format, policy=ANY) as device:
                assert device.read_at(199_990, len(check)) == check
            assert not file.closed
        with (
            image.open("rb") as file,
            self.open_disk(FileObjectStorage(file), self.format, policy=ANY) as device,
        ):
            assert device.read_at(199_990, len(check)) == check

    def test_close_twice(self, image: Path) -> None:
        device = self.open_disk(image, self.format)
        children = list(device.children.values())
        device.close()
        device.close()
        for child in children:
            child.close()
        with pytest.raises(ValueError, match="closed"):
            device.read_at(0, 1)

    def test_no_descriptor_is_left_open(self, image: Path) -> None:
        before = _descriptors()
        for _ in range(3):
            with self.open_disk(image, self.format) as device:
                device.read_at(0, 1)
        assert _descriptors() == before

    def test_reading_leaves_the_file_alone(self, image: Path) -> None:
        before = image.read_bytes()
        with self.open_disk(image, self.format) as device:
            device.read_at(0, device.size)
            device.flush()
        assert image.read_bytes() == before


def _descriptors() -> list[str]:
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("this system does not list open descriptors")
    return sorted(os.listdir(folder))
