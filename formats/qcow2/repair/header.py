"""The header of an image under repair: read as far as it can be, and switched when all is ready."""

from __future__ import annotations

from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.header_switch import write_header
from imgtool.storage.base import Storage


def switch_header(storage: Storage, header: Header) -> Header:
    """Write a header behind everything that it makes visible, wait for it, and return it."""
    storage.flush()
    write_header(storage, header)
    return header
