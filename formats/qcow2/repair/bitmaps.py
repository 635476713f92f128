"""Bitmaps under repair.

Bitmaps in which anything cannot be are dropped, all of them: QEMU does not open an image for
writing with such bitmaps, and a backup that trusted what is left of them would miss changes.
"""

from __future__ import annotations

from imgtool.errors import CorruptImage
from imgtool.findings import CheckResult, Findings
from imgtool.formats.qcow2.bitmaps import Bitmap, read_bitmaps
from imgtool.formats.qcow2.check.extras import count_bitmaps
from imgtool.formats.qcow2.check.survey import new_state
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import Autoclear, ExtensionType
from imgtool.storage.base import Storage


def sound_bitmaps(
    storage: Storage, header: Header, findings: Findings
) -> tuple[Header, list[Bitmap]]:
    """Return the bitmaps of an image, and its header: without any if they are damaged.

    Writing that header is left to the caller.
    """
    state = new_state(storage, header, Findings(CheckResult()))
    try:
        bitmaps = read_bitmaps(storage, header)
        count_bitmaps(state, bitmaps)
        reason = state.findings.result.messages
    except CorruptImage as error:
        reason = [error.reason]
    finally:
        state.charge.release()
    if not reason:
        return header, bitmaps
    findings.corruption(f"Dropping all bitmaps: {reason[0]}")
    return without_bitmaps(header), []


def without_bitmaps(header: Header) -> Header:
    """The header of an image whose bitmaps are dropped."""
    return header.with_extension(ExtensionType.BITMAPS, None)._replace(
        autoclear=header.autoclear & ~Autoclear.BITMAPS,
    )
