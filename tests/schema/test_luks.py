"""LUKS 1 headers, as the LUKS1 On-Disk Format Specification lays them out."""

from __future__ import annotations

import struct

import pytest

from imgtool.errors import CorruptImage
from imgtool.schema import luks

_FIXED = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")


def _header(mode: bytes = b"xts-plain64", *, version: int = 1, key_bytes: int = 64) -> bytes:
    fixed = _FIXED.pack(
        b"LUKS\xba\xbe",
        version,
        b"aes",
        mode,
        b"sha256",
        4040,
        key_bytes,
        b"d" * 20,
        b"s" * 32,
        1234,
        b"ea0e1979-d4c6-43bc-86c1-30e84ffda137",
    )
    slots = [_SLOT.pack(0x00AC71F3, 44949, b"s" * 32, 8, 4000)]
    slots += [_SLOT.pack(0x0000DEAD, 0, bytes(32), 8 + 504 * index, 4000) for index in range(1, 8)]
    return fixed + b"".join(slots)


def test_describe() -> None:
    assert luks.HEADER.sizeof() == 592
    found = luks.describe(_header(), inside="luks")
    assert list(found) == [
        "ivgen-alg",
        "detached-header",
        "hash-alg",
        "cipher-alg",
        "uuid",
        "format",
        "cipher-mode",
        "slots",
        "payload-offset",
        "master-key-iters",
    ]
    assert (found["cipher-alg"], found["cipher-mode"]) == ("aes-256", "xts")
    assert found["payload-offset"] == 4040 * 512
    assert found["slots"][0] == {
        "active": True,
        "iters": 44949,
        "key-offset": 4096,
        "stripes": 4000,
    }
    assert found["slots"][7] == {"active": False, "key-offset": (8 + 504 * 7) * 512}


def test_describe_another_cipher() -> None:
    found = luks.describe(_header(b"cbc-essiv:sha256", key_bytes=16))
    assert (found["cipher-alg"], found["cipher-mode"]) == ("aes-128", "cbc")
    assert (found["ivgen-alg"], found["ivgen-hash-alg"]) == ("essiv", "sha256")
    assert "format" not in found


@pytest.mark.parametrize("header", [b"", bytes(592), _header()[:-1], _header(version=2)])
def test_what_is_no_header(header: bytes) -> None:
    with pytest.raises(CorruptImage, match="LUKS"):
        luks.describe(header)
