"""What ``info`` tells about a LUKS volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.description import Description
from imgtool.schema import luks

if TYPE_CHECKING:
    from imgtool.device import BlockDevice


def describe(device: BlockDevice) -> Description:
    """Describe an open volume, unlocked or not."""
    from imgtool.formats.luks.driver import LuksDevice

    assert isinstance(device, LuksDevice)
    return Description(encrypted=True, specific=luks.describe(device.header))
