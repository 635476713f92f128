"""What can be read of an image that may be damaged, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.snapshots import Snapshot
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import ANY, open_disk

#: By disk (None is the active one, the others go by the id of their snapshot), then by piece: the
#: bytes, or None where they cannot be read.
View = dict[str | None, list[bytes | None]]
#: How many pieces are read of a disk that claims to be very large.
_MOST = 4096
Open = Callable[[Mapping[str, object]], BlockDevice]


def view(source: Storage | str, *, follow: bool = True) -> View:
    """Everything that a guest could read of a qcow2 image and of its snapshots."""
    image = source.getvalue() if isinstance(source, MemoryStorage) else None

    def opened(options: Mapping[str, object]) -> BlockDevice:
        chosen = source if image is None else MemoryStorage(image, "x.img")
        return open_disk(chosen, "qcow2", policy=ANY, options=options, follow=follow)

    found: View = {None: pieces(lambda: opened({}))}
    for snapshot in _snapshots(lambda: opened({})):
        options = {"snapshot.id": snapshot.id}
        found[snapshot.id] = pieces(lambda options=options: opened(options))  # type: ignore[misc]
    return found


def _snapshots(opened: Callable[[], BlockDevice]) -> list[Snapshot]:
    try:
        with opened() as device:
            assert isinstance(device, Qcow2Device)
            return device.snapshots
    except ImageError:
        return []


def pieces(opened: Callable[[], BlockDevice]) -> list[bytes | None]:
    """Read a disk in what it allocates at a time."""
    try:
        device = opened()
    except ImageError:
        return []
    found: list[bytes | None] = []
    with device:
        assert isinstance(device, Qcow2Device)
        step = device.header.geometry.subcluster_size
        for offset in range(0, min(device.size, _MOST * step), step):
            try:
                found.append(device.read_at(offset, min(step, device.size - offset)))
            except ImageError:
                found.append(None)
    return found


def assert_nothing_lost(before: View, after: View) -> None:
    """What could be read before must read the same afterwards; more may be readable then."""
    for disk, was in before.items():
        readable = [place for place, piece in enumerate(was) if piece is not None]
        if not readable:
            continue
        now = after[disk]
        wrong = [place for place in readable if now[place] != was[place]]
        assert not wrong, f"disk {disk}: pieces {wrong[:5]} of {len(was)} have changed"
