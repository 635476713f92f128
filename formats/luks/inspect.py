"""Inspecting a LUKS 1 volume: its header, and that the payload is there."""

from __future__ import annotations

from imgtool.crypto.luks_inspect import inspect_header
from imgtool.inspection import Notes, Steps, file_size, read
from imgtool.schema import luks


def inspect(notes: Notes) -> Steps[None]:
    """Judge the header of a volume that fills a file."""
    notes.variant = "version 1"
    data = yield from read(0, luks.HEADER.sizeof(), "The LUKS header")
    volume = inspect_header(notes, data)
    size = yield from file_size()
    if volume.payload_offset > size:
        notes.unsafe(
            "luks-payload",
            "The LUKS payload begins past the end of the file",
            volume.payload_offset,
        )
    else:
        notes.virtual_size = size - volume.payload_offset
