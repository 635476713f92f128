"""The marks of an image whose refcounts and flags may not agree, and what goes without them.

Version 2 has no such mark. While it needs one, its image is one of version 3, which differs in the
header alone, with a header extension that says where it came from: whoever does not know that finds
a sound image of version 3, and repair makes it one of version 2 again.

Source: the specification's section "Header".
"""

from __future__ import annotations

from dataclasses import replace

from imgtool.errors import ImageError
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import Compatible, ExtensionType, Incompatible

_MARKS = Incompatible.DIRTY | Incompatible.CORRUPT
_ORDER_V2 = 4


def is_marked(header: Header) -> bool:
    """Whether the image says of itself that it wants repair."""
    return bool(header.incompatible & _MARKS)


def dirty(header: Header) -> Header | None:
    """The header with the dirty bit; None if the first cluster has no room for that."""
    marked = replace(header, incompatible=header.incompatible | Incompatible.DIRTY)
    if header.version >= 3:
        # An extension that others have left would tell of a past that is too long ago.
        return marked.with_extension(ExtensionType.WAS_VERSION_2, None)
    marked = replace(marked, version=3, header_length=schema.HEADER_V3_LENGTH)
    marked = marked.with_extension(ExtensionType.WAS_VERSION_2, b"")
    try:
        marked.build()
    except ImageError:
        return None
    return marked


def unmarked(header: Header) -> Header:
    """The header without the marks, of the version that it had before it was marked."""
    clean = replace(header, incompatible=header.incompatible & ~_MARKS)
    if not _was_version_2(header):
        return clean
    return replace(clean, version=2, header_length=schema.HEADER_V2_LENGTH).with_extension(
        ExtensionType.WAS_VERSION_2, None
    )


def _was_version_2(header: Header) -> bool:
    """Whether :func:`dirty` has made the header one of version 3, and nobody has written since.

    Whoever writes clears the dirty bit first, and sets it again only beside other features.
    """
    return (
        header.dirty
        and header.extension(ExtensionType.WAS_VERSION_2) is not None
        and not header.incompatible & ~_MARKS
        and header.compatible == Compatible(0)
        and not header.autoclear
        and header.geometry.refcount_order == _ORDER_V2
    )
