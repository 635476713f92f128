"""What every storage does, whatever its bytes lie in: subclass, and give it three fixtures."""

from __future__ import annotations

import abc
import array
import errno
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from imgtool.errors import CorruptImage, ReadOnly
from imgtool.storage.base import HostRange, Storage


class StorageContract(abc.ABC):
    """Give ``storage``, empty and writable, and ``read_only``, which holds ``CONTENT``."""

    CONTENT = bytes(range(256)) * 40

    @pytest.fixture
    @abc.abstractmethod
    def storage(self) -> Iterator[Storage]:
        """An empty, writable storage."""

    @pytest.fixture
    @abc.abstractmethod
    def read_only(self) -> Iterator[Storage]:
        """A storage that is not writable and holds :attr:`CONTENT`."""

    # Reading

    def test_is_empty_at_first(self, storage: Storage) -> None:
        assert storage.size() == 0
        assert not storage.read_only
        assert storage.read_at(0, 3) == bytes(3)

    def test_holds_what_it_is_given(self, read_only: Storage) -> None:
        assert read_only.read_only
        assert read_only.size() == len(self.CONTENT)
        assert read_only.read_at(0, len(self.CONTENT)) == self.CONTENT
        assert read_only.read_at(255, 3) == b"\xff\x00\x01"

    @pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 10000, 10239, 10240, 10241, 1 << 40])
    def test_reads_zeros_past_the_end(self, read_only: Storage, offset: int) -> None:
        for length in (0, 1, 4096, 5000, 20000):
            buffer = bytearray(b"\xaa" * length)
            there = self.CONTENT[offset : offset + length]
            assert read_only.read_into(offset, buffer) == len(there)
            assert buffer == there + bytes(length - len(there))

    def test_no_offset_is_too_large_to_read(self, read_only: Storage) -> None:
        for offset in (1 << 62, (1 << 63) - 2, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 80):
            assert read_only.read_at(offset, 100) == bytes(100)

    def test_reads_into_any_buffer(self, read_only: Storage) -> None:
        numbers = np.zeros((4, 8), dtype="<u4")
        assert read_only.read_into(0, numbers) == 128
        assert numbers.tobytes() == self.CONTENT[:128]
        words = array.array("H", bytes(10))
        assert read_only.read_into(1, words) == 10
        assert words.tobytes() == self.CONTENT[1:11]
        assert read_only.read_into(0, np.zeros((0, 3))) == 0

    def test_read_exact(self, read_only: Storage) -> None:
        end = len(self.CONTENT)
        assert read_only.read_exact(end - 5, 5, "the tail") == self.CONTENT[-5:]
        assert read_only.read_exact(end + 5, 0, "nothing") == b""
        with pytest.raises(CorruptImage, match="the tail lies past the end") as caught:
            read_only.read_exact(end - 4, 5, "the tail")
        assert caught.value.offset == end - 4
        assert caught.value.filename == read_only.name
        with pytest.raises(CorruptImage):
            read_only.read_exact(0, 1 << 60, "a table of an exbibyte")

    def test_a_negative_offset_is_an_error(self, storage: Storage) -> None:
        for call in (
            lambda: storage.read_at(-1, 4),
            lambda: storage.write_at(-1, b"abcd"),
            lambda: storage.write_zeroes(-1, 4),
            lambda: storage.write_zeroes(4, -1),
            lambda: storage.preallocate(-1, 4),
            lambda: storage.truncate(-1),
            lambda: list(storage.ranges(-1, 4)),
        ):
            with pytest.raises(OSError, match="Invalid argument") as caught:
                call()
            assert caught.value.errno == errno.EINVAL
        assert storage.size() == 0

    def test_an_offset_no_file_has_is_an_error(self, storage: Storage) -> None:
        for call in (
            lambda: storage.write_at((1 << 63) - 2, b"abcd"),
            lambda: storage.write_at(1 << 70, b"abcd"),
            lambda: storage.write_zeroes(0, 1 << 63),
            lambda: storage.preallocate(1 << 62, 1 << 62),
            lambda: storage.truncate(1 << 63),
        ):
            with pytest.raises(OSError, match="too large") as caught:
                call()
            assert caught.value.errno == errno.EFBIG
        assert storage.size() == 0

    # Writing

    def test_writes_where_it_is_told(self, storage: Storage) -> None:
        storage.write_at(3, b"abc")
        assert storage.size() == 6
        assert storage.read_at(0, 8) == b"\0\0\0abc\0\0"
        storage.write_at(5, b"de")
        assert storage.size() == 7
        assert storage.read_at(0, 7) == b"\0\0\0abde"

    @pytest.mark.parametrize("offset", [0, 1, 511, 4095, 4096, 12288])
    def test_writes_not_a_byte_more(self, storage: Storage, offset: int) -> None:
        for length in (1, 512, 4095, 4096, 4097, 16384, (1 << 20) + 8192):
            data = random.Random(length).randbytes(length)
            storage.truncate(0)
            storage.write_at(offset, data)
            assert storage.size() == offset + length
            storage.write_at(offset + length, b"tail")
            storage.write_at(offset, data)
            assert storage.size() == offset + length + 4
            assert storage.read_at(0, offset + length + 4) == bytes(offset) + data + b"tail"

    def test_writes_any_buffer(self, storage: Storage) -> None:
        numbers = np.arange(12, dtype=">u8").reshape(3, 4)
        storage.write_at(0, numbers)
        storage.write_at(96, array.array("B", b"xyz"))
        storage.write_at(99, memoryview(bytearray(b"0123"))[1:3])
        storage.write_at(0, np.zeros((0, 3)))
        assert storage.read_at(0, 101) == numbers.tobytes() + b"xyz12"

    def test_writing_nothing_changes_nothing(self, storage: Storage) -> None:
        storage.write_at(100, b"")
        storage.write_zeroes(100, 0)
        storage.preallocate(100, 0)
        assert storage.size() == 0

    @pytest.mark.parametrize("unmap", [True, False])
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 1), (1, 9998), (4096, 4096), (9000, 5000), (20000, 3 << 20)]
    )
    def test_write_zeroes(self, storage: Storage, offset: int, length: int, unmap: bool) -> None:
        storage.write_at(0, b"\xff" * 10000)
        storage.write_zeroes(offset, length, unmap=unmap)
        expected = bytearray(b"\xff" * 10000)
        if len(expected) < offset + length:
            expected.extend(bytes(offset + length - len(expected)))
        expected[offset : offset + length] = bytes(length)
        assert storage.size() == len(expected)
        assert storage.read_at(0, len(expected)) == expected

    def test_truncate(self, storage: Storage) -> None:
        storage.write_at(0, b"\xff" * 6000)
        storage.truncate(5000)
        assert storage.size() == 5000
        storage.truncate(9000)
        assert storage.size() == 9000
        assert storage.read_at(0, 9000) == b"\xff" * 5000 + bytes(4000)
        storage.truncate(0)
        assert storage.size() == 0

    def test_preallocate_keeps_what_is_there(self, storage: Storage) -> None:
        storage.write_at(1000, b"\xff" * 1000)
        storage.preallocate(500, 100_000)
        assert storage.size() == 100_500
        assert storage.read_at(0, 3000) == bytes(1000) + b"\xff" * 1000 + bytes(1000)
        assert storage.allocated() >= 100_000
        storage.preallocate(0, 10)
        assert storage.size() == 100_500

    def test_full_preallocation_writes_zeros(self, storage: Storage) -> None:
        storage.write_at(0, b"\xff" * 1000)
        storage.preallocate(500, 100_000, full=True)
        assert storage.read_at(0, 100_500) == b"\xff" * 500 + bytes(100_000)
        assert list(storage.ranges(0, 100_500)) == [HostRange(0, 100_500, True)]

    def test_does_as_a_byte_array_does(self, storage: Storage) -> None:
        model = bytearray()
        chance = random.Random(20)

        def reach(size: int) -> None:
            model.extend(bytes(max(0, size - len(model))))

        for _ in range(150):
            offset, length = chance.randrange(40_000), chance.randrange(1, 20_000)
            if chance.random() < 0.3:
                offset, length = offset & -4096, length & -4096 or 4096
            action = chance.randrange(6)
            if action == 0:
                size = chance.randrange(50_000)
                storage.truncate(size)
                reach(size)
                del model[size:]
            elif action == 1:
                storage.preallocate(offset, length)
                reach(offset + length)
            elif action in (2, 3):
                storage.write_zeroes(offset, length, unmap=action == 2)
                reach(offset + length)
                model[offset : offset + length] = bytes(length)
            else:
                data = chance.randbytes(length)
                storage.write_at(offset, data)
                reach(offset)
                model[offset : offset + length] = data
            assert storage.size() == len(model)
            assert storage.read_at(0, 61_000) == model + bytes(61_000 - len(model))
            self._check_ranges(storage, model)

    def _check_ranges(self, storage: Storage, model: bytearray) -> None:
        position = 10
        before = None
        for item in storage.ranges(10, 70_000):
            assert item.offset == position
            assert item.length > 0
            assert item.is_data != before
            if not item.is_data:
                assert not any(model[item.offset : item.offset + item.length])
            position += item.length
            before = item.is_data
        assert position == 70_010
        assert before is False

    def test_what_lies_past_the_end_is_a_hole(self, storage: Storage) -> None:
        storage.write_at(0, b"\xff" * 8192)
        assert list(storage.ranges(8192, 10)) == [HostRange(8192, 10, False)]
        assert list(storage.ranges(1 << 40, 10)) == [HostRange(1 << 40, 10, False)]
        assert list(storage.ranges(4096, 8192)) == [
            HostRange(4096, 4096, True),
            HostRange(8192, 4096, False),
        ]
        assert list(storage.ranges(0, 0)) == []

    def test_refuses_to_write_when_read_only(self, read_only: Storage) -> None:
        for call in (
            lambda: read_only.write_at(0, b"x"),
            lambda: read_only.write_zeroes(0, 1),
            lambda: read_only.truncate(0),
            lambda: read_only.preallocate(0, 1),
        ):
            with pytest.raises(ReadOnly) as caught:
                call()
            assert caught.value.filename == read_only.name
        read_only.flush()
        assert read_only.read_at(0, len(self.CONTENT)) == self.CONTENT

    def test_flush(self, storage: Storage) -> None:
        storage.write_at(0, b"abc")
        storage.flush()
        storage.flush()
        assert storage.read_at(0, 3) == b"abc"

    # Its life

    def test_identity_is_the_same_each_time(self, storage: Storage, read_only: Storage) -> None:
        assert hash(storage.identity) == hash(storage.identity)
        assert storage.identity == storage.identity
        assert storage.identity != read_only.identity

    def test_closes_for_good(self, storage: Storage) -> None:
        with storage:
            storage.write_at(0, b"abc")
        storage.close()
        for call in (
            lambda: storage.read_at(0, 1),
            lambda: storage.write_at(0, b"x"),
            lambda: storage.write_zeroes(0, 1),
            lambda: storage.truncate(1),
            lambda: storage.preallocate(0, 1),
            lambda: list(storage.ranges(0, 1)),
            storage.size,
            storage.allocated,
            storage.flush,
        ):
            with pytest.raises(ValueError, match="closed"):
                call()

    # Threads

    def test_many_threads_read_at_once(self, storage: Storage) -> None:
        blocks = [bytes([number]) * 1000 for number in range(1, 101)]
        storage.write_at(0, b"".join(blocks))

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(200):
                number = chance.randrange(100)
                assert storage.read_at(number * 1000, 1000) == blocks[number]

        in_threads(work, 8)

    def test_many_threads_write_at_once(self, storage: Storage) -> None:
        def work(number: int) -> None:
            for step in range(30):
                place = (step * 8 + number) * 600
                storage.write_at(place, bytes([number + 1]) * 600)
                assert storage.read_at(place, 600) == bytes([number + 1]) * 600

        in_threads(work, 8)
        expected = b"".join(bytes([number + 1]) * 600 for number in range(8)) * 30
        assert storage.read_at(0, storage.size()) == expected

    def test_no_growth_cuts_off_another(self, storage: Storage) -> None:
        def work(number: int) -> None:
            for step in range(40):
                place = (step * 4 + number) * 5000
                if number % 2:
                    storage.write_zeroes(place, 5000)
                else:
                    storage.write_at(place, b"\xff" * 5000)

        in_threads(work, 4)
        assert storage.size() == 40 * 4 * 5000
        assert storage.read_at(0, storage.size()) == (b"\xff" * 5000 + bytes(5000)) * 80


def in_threads(work: object, count: int) -> None:
    """Call ``work(0)`` to ``work(count - 1)`` at once; raise what any of them raised."""
    assert callable(work)
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
