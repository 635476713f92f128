"""Amend: change the options that an image was created with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.errors import BadOption, ImageError


def amend(
    reference: Reference,
    options: Mapping[str, object],
    *,
    opener: Opener | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Change an image's options. Raises :class:`ImageError` for what can't be changed."""
    with replace(opener or Opener(), writable=True).reference(reference) as device:
        chosen = registry.find(device.format)
        amender = chosen.load_amender()
        if amender is None:
            raise ImageError(
                f"Format driver '{device.format}' does not support option amendment",
                filename=device.name,
            )
        for name in options:
            known = name.replace("-", "_")
            if known in chosen.create_options and known not in chosen.amend_options:
                raise BadOption(
                    f"Invalid parameter '{name}'; this option is only supported for image creation",
                    filename=device.name,
                )
        try:
            amender(device, chosen.amend_options.check(options), progress)
        except ImageError as error:
            raise error.in_file(device.name) from error.__cause__
