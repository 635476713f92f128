"""What a qcow2 image records of its backing file: the name in the header, the format beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.errors import BadOption
from imgtool.formats.qcow2.header import MAX_BACKING_NAME, os_bytes
from imgtool.formats.qcow2.schema import ExtensionType

if TYPE_CHECKING:
    from imgtool.formats.qcow2.writable import WritableQcow2


def change_backing(device: WritableQcow2, name: str | None, format: str | None) -> None:
    """Record another backing file, in one write of the header behind all that came before it.

    Raises :class:`BadOption` for names that the header cannot hold, and for a backing file under
    an external data file that is the disk as it is.
    """
    if name is not None and len(os_bytes(name)) > MAX_BACKING_NAME:
        raise BadOption(
            f"The backing file name is longer than {MAX_BACKING_NAME} bytes", filename=device.name
        )
    if name is not None and device.header.data_file_raw:
        raise BadOption(
            "A backing file and a raw external data file exclude each other", filename=device.name
        )
    with device.exclusive():
        device.flush()
        recorded = None if name is None or format is None else os_bytes(format)
        header = device.header.with_extension(ExtensionType.BACKING_FORMAT, recorded)
        device.metadata.switch_header(header._replace(backing_file=name))
