"""Resize: make a disk larger or smaller."""

from __future__ import annotations

from dataclasses import replace

from imgtool.chain import Opener, Reference
from imgtool.errors import BadOption
from imgtool.units import parse_size

PREALLOCATION = ("off", "metadata", "falloc", "full")


def resize(
    reference: Reference,
    size: int | str,
    *,
    shrink: bool = False,
    preallocation: str = "off",
    opener: Opener | None = None,
) -> int:
    """Give a disk another virtual size, and return it in bytes.

    ``size`` is the new size in bytes, or text with a suffix; text with ``+`` or ``-`` in front of
    it is what is added or taken away. What is added reads as zeros. Cutting something off needs
    ``shrink``. ``preallocation`` is done for what is added: ``off``, ``metadata``, ``falloc`` or
    ``full``. Raises :class:`~imgtool.errors.BadOption` for sizes that cannot be, and
    :class:`~imgtool.errors.OverBudget` for one that the opener's budget does not allow.
    """
    if preallocation not in PREALLOCATION:
        raise BadOption(f"Invalid preallocation mode '{preallocation}'")
    sign, amount = _parse(size)
    opener = replace(opener or Opener(), writable=True)
    with opener.reference(reference) as device:
        new = device.size + sign * amount if sign else amount
        if new <= 0:
            raise BadOption("New image size must be positive", filename=device.name)
        if new <= device.size and preallocation != "off":
            raise BadOption(
                "Preallocation can only be used for growing images", filename=device.name
            )
        if new < device.size and not shrink:
            raise BadOption(
                "Use the --shrink option to perform a shrink operation. Shrinking deletes all "
                "data beyond the shrunken image's end: make sure there is no important data there",
                filename=device.name,
            )
        opener.budget.check_virtual_size(new, device.name)
        device.resize(new, preallocation=preallocation)
        device.flush()
        return new


def _parse(size: int | str) -> tuple[int, int]:
    """The sign, 0 if there is none, and the number of bytes."""
    if isinstance(size, str) and size[:1] in ("+", "-"):
        return (1 if size[0] == "+" else -1), parse_size(size[1:])
    return 0, parse_size(size)
