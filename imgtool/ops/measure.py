"""Measure: how large an image's file will be, before it is made."""

from __future__ import annotations

from collections.abc import Mapping

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.errors import BadOption
from imgtool.format import Measurement


def measure(
    source: Reference | None = None,
    *,
    size: int | None = None,
    format: str = "raw",
    options: Mapping[str, object] | None = None,
    opener: Opener | None = None,
) -> Measurement:
    """Predict the file size of a new image of ``format`` with these ``options``.

    It is either to hold what the image ``source`` holds with its backing chain, or to be an empty
    disk of ``size`` bytes. Raises :class:`BadOption` for what that format cannot be.
    """
    if (source is None) == (size is None):
        raise BadOption("Measuring needs either a source or a size")
    chosen = registry.find(format)
    measurer = chosen.load_measurer()
    if measurer is None:
        raise BadOption(f"Format '{chosen.name}' does not support size measurement")
    opening = opener or Opener()
    # A password is the source's, as in convert.
    checked = opening.secrets._replace(password=None).fill_in(
        chosen.create_options, chosen.create_options.check(options or {})
    )
    checked.pop("size", None)
    if size is not None:
        return measurer(size, checked, None)
    assert source is not None
    with opening.reference(source) as device:
        return measurer(device.size, checked, device.kinds(), device.stored_bitmaps)
