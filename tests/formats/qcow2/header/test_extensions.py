"""Header extensions: where they end, how much of them is read, and those with pointers."""

from __future__ import annotations

import struct

import pytest

from imgtool.budget import Budget
from imgtool.errors import CorruptImage, OverBudget
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.schema import ExtensionType
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.header.images import MiB, built, header_of, with_name
from tests.kit import qcow2
from tests.kit.corrupt import put


def test_extension_that_just_fits() -> None:
    room = 512 - 104 - 8
    header = header_of(built(cluster_bits=9, header_length=104))
    assert header.extensions == ()
    image = put(built(cluster_bits=9), 104, struct.pack(">II", 0x12345678, room))
    assert header_of(image).extensions[0].data == image[112:512]
    for length in (room + 1, 0x7FFFFFFF, 0xFFFFFFFF):
        with pytest.raises(CorruptImage, match="longer than its space"):
            header_of(put(image, 104, struct.pack(">II", 0x12345678, length)))


@pytest.mark.parametrize("length", [4096 - 112 - 8 - 8, 4096 - 112 - 8, 5000, 65536 - 112 - 16])
def test_extensions_of_more_bytes_than_are_read_at_first(length: int) -> None:
    data = bytes(range(256)) * 256
    extensions = [(0x12345678, data[:length]), (0x12345679, b"last")]
    if length > 60000:
        extensions.pop()
    header = header_of(built(extensions=extensions))
    assert [(one.type, one.data) for one in header.extensions] == extensions


def test_a_backing_name_behind_what_is_read_at_first() -> None:
    header = header_of(built(backing=b"base", extensions=[(0x12345678, bytes(6000))]))
    assert header.backing_file == "base"
    assert len(header.extensions) == 1


def test_a_cluster_of_extensions_is_read_once() -> None:
    reads: list[int] = []

    class Counting(MemoryStorage):
        def read_at(self, offset: int, length: int) -> bytes:
            reads.append(length)
            return super().read_at(offset, length)

    # Nothing but extensions without data, up to the end of the largest cluster.
    image = put(built(cluster_bits=21), 104, struct.pack(">II", 0x12345678, 0) * 100_000)
    with Counting(image) as storage:
        assert len(read_header(storage).extensions) >= 100_000
    assert reads == [4096, 2 * MiB]


def test_more_of_the_first_cluster_is_paid_for() -> None:
    def opened(extensions: list[tuple[int, bytes]]) -> Header:
        storage = MemoryStorage(built(cluster_bits=21, extensions=extensions))
        storage.account = Budget(max_memory=MiB).account("disk.qcow2")
        return read_header(storage)

    assert opened([(0x12345678, b"short")]).extensions
    with pytest.raises(OverBudget, match="The header's cluster"):
        opened([(0x12345678, bytes(8192))])


def test_length_of_the_end_of_the_extensions() -> None:
    end = struct.pack(">II", 0, 512 - 104 - 8)
    assert header_of(put(built(cluster_bits=9), 104, end)).extensions == ()
    with pytest.raises(CorruptImage, match="longer than its space"):
        header_of(put(built(cluster_bits=9), 104, struct.pack(">II", 0, 512 - 104 - 7)))


def test_extensions_end_where_the_backing_name_begins() -> None:
    image = with_name(b"base", 128)
    image = put(image, 104, struct.pack(">II", 0x12345678, 16))
    assert header_of(image).extensions[0].data == image[112:128]
    with pytest.raises(CorruptImage, match="longer than its space"):
        header_of(put(image, 104, struct.pack(">II", 0x12345678, 17)))


def test_bitmaps_extension_limits() -> None:
    def image(count: int, size: int, offset: int = 1 << 16, data: bytes = b"") -> Header:
        packed = data or struct.pack(">IIQQ", count, 0, size, offset)
        return header_of(
            built(
                extensions=[(qcow2.BITMAPS_EXTENSION, packed)],
                header={"autoclear_features": qcow2.BITMAPS},
            )
        )

    found = image(65535, 65535 * 1024).bitmaps
    assert found is not None
    assert (found.number, found.directory_size) == (65535, 65535 * 1024)
    for header in (
        image(65536, 1024),
        image(0, 1024),
        image(1, 0),
        image(1, 65535 * 1024 + 1),
        image(1, 1024, offset=512),
        image(1, 1024, data=bytes(23)),
        image(1, 1024, data=bytes(25)),
    ):
        with pytest.raises(CorruptImage):
            _ = header.bitmaps


def test_bitmaps_without_their_bit_are_not_believed() -> None:
    header = header_of(built(extensions=[(qcow2.BITMAPS_EXTENSION, bytes(3))]))
    assert header.bitmaps is None


@pytest.mark.parametrize("length", [0, 15, 17])
def test_encryption_header_pointer_of_another_length(length: int) -> None:
    pointer = struct.pack(">QQ", 1 << 16, 4096).ljust(17, b"\0")[:length]
    image = built(extensions=[(qcow2.CRYPTO, pointer)], header={"crypt_method": 2})
    if length < 16:
        with pytest.raises(CorruptImage):
            header_of(image)
    else:
        assert header_of(image).luks_header == (1 << 16, 4096)


def test_unaligned_encryption_header() -> None:
    pointer = struct.pack(">QQ", (1 << 16) + 512, 4096)
    with pytest.raises(CorruptImage, match="LUKS"):
        header_of(built(extensions=[(qcow2.CRYPTO, pointer)], header={"crypt_method": 2}))


@pytest.mark.parametrize("name", ["BACKING_FORMAT", "DATA_FILE", "CRYPTO", "BITMAPS"])
def test_what_comes_twice_is_refused(name: str) -> None:
    """QEMU goes by the last, others by the first: one image would be two."""
    twice = [(ExtensionType[name], b"raw"), (0x12345678, b""), (ExtensionType[name], b"qcow2")]
    with pytest.raises(CorruptImage, match="comes twice"):
        header_of(built(extensions=twice))


def test_feature_names_may_come_twice() -> None:
    names = [(ExtensionType.FEATURE_NAMES, bytes(48))] * 2
    assert len(header_of(built(extensions=names)).extensions) == 2
