"""Check: whether an image's metadata agrees with itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.errors import ImageError
from imgtool.format import CheckResult


class NoChecks(ImageError):
    """The image's format has nothing that could be checked."""


@dataclass
class CheckReport(CheckResult):
    """What a check of the image ``filename`` found."""

    filename: str = ""
    format: str = ""

    @property
    def clean(self) -> bool:
        """Whether everything could be checked, and nothing was found."""
        return not (self.corruptions or self.leaks or self.check_errors)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``qemu-img check --output=json`` prints, keys in its order."""
        first = {
            "image-end-offset": self.image_end_offset,
            "compressed-clusters": self.compressed_clusters,
            "total-clusters": self.total_clusters,
            "corruptions": self.corruptions,
        }
        values: dict[str, Any] = {name: value for name, value in first.items() if value}
        values["check-errors"] = self.check_errors
        if self.leaks:
            values["leaks"] = self.leaks
        if self.allocated_clusters:
            values["allocated-clusters"] = self.allocated_clusters
        values["filename"] = self.filename
        values["format"] = self.format
        if self.fragmented_clusters:
            values["fragmented-clusters"] = self.fragmented_clusters
        return values


def check(
    reference: Reference,
    *,
    opener: Opener | None = None,
    report: Callable[[str], None] | None = None,
) -> CheckReport:
    """Check an image. No other file is opened: neither its backing image nor its data file.

    ``report`` is told each finding as it is made, a line of text; without it the first thousand
    are kept in the result. Raises :class:`NoChecks` if the format has none, and
    :class:`~imgtool.errors.CorruptImage` where the metadata is too broken to be followed.
    """
    with replace(opener or Opener(), follow=False).reference(reference) as device:
        checker = registry.find(device.format).load_checker()
        if checker is None:
            raise NoChecks("This image format does not support checks")
        try:
            result = checker(device, report)
        except ImageError as error:
            raise error.in_file(device.name) from error.__cause__
        source = reference.source
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else device.name
        return CheckReport(**vars(result), filename=os.fsdecode(name), format=device.format)
