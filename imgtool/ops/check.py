"""Check: whether an image's metadata agrees with itself, and making it agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from imgtool import registry
from imgtool.chain import Opener, Reference, storage_for
from imgtool.errors import BadOption, ImageError
from imgtool.findings import CheckResult


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
            "corruptions-fixed": self.corruptions_fixed,
        }
        values: dict[str, Any] = {name: value for name, value in first.items() if value}
        values["check-errors"] = self.check_errors
        if self.leaks_fixed:
            values["leaks-fixed"] = self.leaks_fixed
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
    repair: str | None = None,
    dry_run: bool = False,
) -> CheckReport:
    """Check an image. No other file is opened: neither its backing image nor its data file.

    ``report`` is told each finding as it is made, a line of text; without it the first thousand
    are kept in the result. ``repair`` is ``leaks`` or ``all``, and ``dry_run`` says what it would
    do without changing a byte: see :class:`imgtool.format.Repair`.

    Raises :class:`NoChecks` if the format has none, and
    :class:`~imgtool.errors.CorruptImage` where the metadata is too broken to be followed.
    """
    opener = replace(opener or Opener(), follow=False)
    if repair is not None:
        return _repair(reference, opener, repair, report, dry_run)
    if dry_run:
        raise BadOption("A dry run is one of a repair")
    with opener.reference(reference) as device:
        checker = registry.find(device.format).load_checker()
        if checker is None:
            raise NoChecks("This image format does not support checks")
        try:
            result = checker(device, report)
        except ImageError as error:
            raise error.in_file(device.name) from error.__cause__
        return _report(reference, result, device.name, device.format)


def _repair(
    reference: Reference,
    opener: Opener,
    what: str,
    report: Callable[[str], None] | None,
    dry_run: bool,
) -> CheckReport:
    if what not in ("leaks", "all"):
        raise BadOption(f"A repair is of 'leaks' or 'all', not '{what}'")
    if opener.share and not dry_run:
        raise BadOption("An image that is shared with others can only be read")
    with storage_for(reference.source, replace(opener, writable=not dry_run)) as storage:
        storage.account = opener.budget.account(storage.name)
        if reference.format is None:
            chosen = registry.probe(storage)
        else:
            chosen = registry.find(reference.format)
            registry.expect(storage, chosen)
        chosen.open_options.check(reference.options)
        repairer = chosen.load_repairer()
        if repairer is None:
            raise NoChecks("This image format does not support checks")
        result = repairer(storage, what, report, dry_run=dry_run)
        return _report(reference, result, storage.name, chosen.name)


def _report(reference: Reference, result: CheckResult, name: str, format: str) -> CheckReport:
    source = reference.source
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else name
    return CheckReport(**vars(result), filename=os.fsdecode(path), format=format)
