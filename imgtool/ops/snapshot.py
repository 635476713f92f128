"""Snapshot: list, take, apply and delete the snapshots that an image keeps inside itself.

None of this reads what the image lies on, so its backing file is not opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from imgtool.chain import Opener, Reference
from imgtool.description import SnapshotInfo
from imgtool.device import BlockDevice
from imgtool.errors import ImageError


def list_snapshots(reference: Reference, *, opener: Opener | None = None) -> list[SnapshotInfo]:
    """The snapshots of an image, in its order; none where the format has no snapshots."""
    with replace(opener or Opener(), follow=False).reference(reference) as device:
        return list(device.stored_snapshots or ())


def create_snapshot(reference: Reference, name: str, *, opener: Opener | None = None) -> None:
    """Keep the disk as it is now under ``name``. Several snapshots may have the same name."""
    with _changing(reference, opener, f"create snapshot '{name}'") as device:
        device.create_snapshot(name)


def apply_snapshot(reference: Reference, wanted: str, *, opener: Opener | None = None) -> None:
    """Make the disk what it was when the snapshot with this id, or else name, was taken."""
    with _changing(reference, opener, f"apply snapshot '{wanted}'") as device:
        device.apply_snapshot(wanted)


def delete_snapshot(reference: Reference, name: str, *, opener: Opener | None = None) -> None:
    """Remove the first snapshot of this name, and give back what only it held."""
    with _changing(reference, opener, f"delete snapshot '{name}'") as device:
        device.delete_snapshot(name)


@contextlib.contextmanager
def _changing(reference: Reference, opener: Opener | None, what: str) -> Iterator[BlockDevice]:
    alone = replace(reference, children={**reference.children, "backing": None})
    with replace(opener or Opener(), writable=True).reference(alone) as device:
        try:
            yield device
        except ImageError as error:
            name = error.filename or device.name
            raise error.within(f"Could not {what}").in_file(name) from error.__cause__
