"""What a file that is no disk image may be, told by its first bytes: archives, programs.

Sources: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format, the .ZIP file format (APPNOTE),
7zFormat.txt of the LZMA SDK, the ustar interchange format of POSIX (tar), the System V ABI (ELF).
bzip2 has no specification: its streams begin with "BZh", a size, and a block or the end.
"""

from __future__ import annotations

import re

_SIGNATURES = (
    ("gzip", (b"\x1f\x8b\x08",)),
    ("xz", (b"\xfd7zXZ\0",)),
    ("zstd", (b"\x28\xb5\x2f\xfd",)),
    ("7z", (b"7z\xbc\xaf\x27\x1c",)),
    # A member, the end of an archive without any, the mark of one in pieces.
    ("zip", (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")),
    ("elf", (b"\x7fELF",)),
)
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")

_TAR_HEADER = 512
_TAR_CHECKSUM = slice(148, 156)


def file_type(head: bytes) -> str | None:
    """What a file with these first bytes is to those who unpack it or run it."""
    for name, signatures in _SIGNATURES:
        if head.startswith(signatures):
            return name
    if _BZIP2.match(head):
        return "bzip2"
    return "tar" if _is_tar(head[:_TAR_HEADER]) else None


def _is_tar(header: bytes) -> bool:
    """The checksum, which old headers have that have no magic: of all bytes, itself as spaces."""
    stated = re.match(rb" *([0-7]+)", header[_TAR_CHECKSUM])
    total = sum(header) - sum(header[_TAR_CHECKSUM]) + 8 * ord(" ")
    return len(header) == _TAR_HEADER and stated is not None and int(stated[1], 8) == total
