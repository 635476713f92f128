"""What a format tells ``info`` about an open image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class SnapshotInfo(NamedTuple):
    """An internal snapshot.

    ``vm_state_size`` and ``disk_size`` are bytes; ``vm_clock_nsec`` is the time that the guest had
    run, ``date_sec`` and ``date_nsec`` when the snapshot was taken, since 1970 in UTC. ``icount``
    counts the guest's instructions; it and ``disk_size`` are None where they are not recorded.
    """

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    disk_size: int | None = None
    icount: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what QEMU's JSON says of a snapshot, keys in its order."""
        seconds, nanoseconds = divmod(self.vm_clock_nsec, 10**9)
        values: dict[str, Any] = {} if self.icount is None else {"icount": self.icount}
        return {
            **values,
            "vm-clock-nsec": nanoseconds,
            "name": self.name,
            "date-sec": self.date_sec,
            "date-nsec": self.date_nsec,
            "vm-clock-sec": seconds,
            "id": self.id,
            "vm-state-size": self.vm_state_size,
        }


class Description(NamedTuple):
    """What a driver knows beyond size and name.

    ``cluster_size`` is in bytes. ``dirty`` means that the image was not closed properly.
    ``backing_filename`` is as it stands in the image, ``backing_format`` None where none is
    recorded. ``specific`` are the format's own facts, named and ordered as qemu-img has them.
    """

    cluster_size: int | None = None
    encrypted: bool = False
    compressed: bool = False
    dirty: bool = False
    backing_filename: str | None = None
    backing_format: str | None = None
    snapshots: Sequence[SnapshotInfo] = ()
    specific: Mapping[str, Any] | None = None
