"""CRC-32C (Castagnoli), which VHDX has over its headers: a few KiB that are mostly zeros."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x82F63B78


def crc32c(data: bytes) -> int:
    """Return the checksum; zeros at the end cost next to nothing, other bytes 0.1 µs each.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table = _table()
    used = data.rstrip(b"\0")
    crc = 0xFFFFFFFF
    for byte in used:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return _skip_zeros(crc, len(data) - len(used)) ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


def _skip_zeros(crc: int, count: int) -> int:
    """What ``count`` zero bytes make of ``crc``: a matrix over bits, squared again and again."""
    table = _table()
    # One zero byte, as what it makes of each bit alone.
    step = [(1 << bit) >> 8 ^ table[(1 << bit) & 0xFF] for bit in range(32)]
    while count:
        if count & 1:
            crc = _times(step, crc)
        step = [_times(step, column) for column in step]
        count >>= 1
    return crc


def _times(matrix: list[int], vector: int) -> int:
    found = 0
    for column in matrix:
        if vector & 1:
            found ^= column
        vector >>= 1
    return found
