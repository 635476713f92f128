from __future__ import annotations

import random

import pytest

from imgtool.schema.crc32c import crc32c
from tests.kit.crc32c import slow_crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    # RFC 3720, section B.4.
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_zeros_at_the_end_are_skipped_and_counted() -> None:
    chance = random.Random(5)
    for count in (0, 1, 2, 3, 7, 64, 255, 1000):
        data = chance.randbytes(chance.randrange(20)) + bytes(count)
        assert crc32c(data) == slow_crc32c(data)
