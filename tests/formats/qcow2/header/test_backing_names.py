"""The backing file's name and format, as the header has them."""

from __future__ import annotations

import pytest

from imgtool.errors import CorruptImage
from tests.formats.qcow2.header.images import built, header_of, with_name
from tests.kit.qcow2_parts import change


def test_backing_name_of_1023_bytes() -> None:
    assert header_of(with_name(b"n" * 1023, 1024)).backing_file == "n" * 1023
    with pytest.raises(CorruptImage, match="1024 bytes is too long"):
        header_of(with_name(b"n" * 1024, 1024))
    with pytest.raises(CorruptImage, match="too long"):
        header_of(change(with_name(b"n", 1024), backing_file_size=0xFFFFFFFF))


def test_backing_name_lies_in_the_first_cluster() -> None:
    assert header_of(with_name(b"base", 512 - 4, cluster_bits=9)).backing_file == "base"
    with pytest.raises(CorruptImage, match="too long"):
        header_of(with_name(b"based", 512 - 4, cluster_bits=9))
    image = change(built(cluster_bits=9), backing_file_size=0)
    assert header_of(change(image, backing_file_offset=512)).backing_file is None
    for offset in (513, 1 << 32, (1 << 64) - 1):
        with pytest.raises(CorruptImage, match="outside the first cluster"):
            header_of(change(image, backing_file_offset=offset))


def test_backing_name_past_the_end_of_the_file() -> None:
    image = change(built(), backing_file_offset=1024, backing_file_size=100)
    with pytest.raises(CorruptImage, match="past the end"):
        header_of(image[:1100])


def test_backing_name_of_any_bytes() -> None:
    name = bytes(range(1, 256))
    header = header_of(with_name(name, 1024))
    assert header.backing_file is not None
    assert header.backing_file.encode("utf-8", "surrogateescape") == name
    assert header_of(header.build().ljust(65536, b"\0")).backing_file == header.backing_file


@pytest.mark.parametrize("recorded", [b"", b"\0\0\0"])
def test_empty_backing_format_records_none(recorded: bytes) -> None:
    header = header_of(built(backing=b"base", backing_format=recorded))
    assert header.backing_file == "base"
    assert header.backing_format is None
