"""Looking at an image the way its users would: what it is, what it holds, whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from imgtool.chain import Reference
from imgtool.device import BlockDevice
from imgtool.ops.bitmap import bitmaps_of
from imgtool.storage.base import Storage
from tests.campaigns.crash.history import Bits, Shape
from tests.kit.recording import RecordingOpener


class Layout:
    """How one disk of a workload is opened: its file, its format, what it lies on."""

    def __init__(
        self,
        file: str,
        format: str,
        *,
        backing: Layout | None = None,
        data_file: str | None = None,
        standalone: bool = False,
        follows_names: bool = False,
        options: dict[str, object] | None = None,
    ) -> None:
        self.options = options or {}
        self.file, self.format = file, format
        self.backing, self.data_file = backing, data_file
        self.standalone = standalone and not follows_names
        self.follows_names = follows_names

    @property
    def files(self) -> list[str]:
        """The files that it takes; none are told if it follows the names in them."""
        if self.follows_names:
            return []
        below = [] if self.backing is None else self.backing.files
        return [self.file, *([] if self.data_file is None else [self.data_file]), *below]

    def reference(self, files: Mapping[str, Storage]) -> Reference:
        """The image as it is opened among ``files``."""
        children: dict[str, Any] = {}
        if self.backing is not None:
            children["backing"] = self.backing.reference(files)
        elif self.standalone:
            children["backing"] = None
        if self.data_file is not None:
            children["data-file"] = Reference(files[self.data_file])
        return Reference(files[self.file], self.format, self.options, children)


def shape_of(device: BlockDevice, reference: Reference, opener: RecordingOpener) -> Shape:
    """The shape of an open image."""
    return Shape(
        device.size,
        facts_of(device),
        snapshots_of(device, reference, opener),
        bits_of(device),
    )


def facts_of(device: BlockDevice) -> tuple[object, ...]:
    """What the header says that a user would miss."""
    if device.format != "qcow2":
        return ()
    header = device.header  # type: ignore[attr-defined]
    return (
        header.version,
        header.geometry,
        int(header.compatible),
        int(header.incompatible) & ~3,
        header.backing_file,
        header.backing_format,
        header.data_file,
        header.data_file_raw,
        header.luks_header,
        header.compression,
    )


def snapshots_of(
    device: BlockDevice, reference: Reference, opener: RecordingOpener
) -> tuple[tuple[str, bytes], ...]:
    """The names of the snapshots, and what they show."""
    reading = replace(opener, writable=False)
    found = []
    for snapshot in device.stored_snapshots or ():
        options = {**reference.options, "snapshot.id": snapshot.id}
        with reading.reference(replace(reference, options=options)) as disk:
            found.append((snapshot.name, disk.read_at(0, disk.size)))
    return tuple(found)


def bits_of(device: BlockDevice) -> tuple[Bits, ...]:
    """The persistent bitmaps."""
    stored = device.stored_bitmaps
    if not stored:
        return ()
    bitmaps = bitmaps_of(device)
    return tuple(
        Bits(
            one.name,
            one.granularity,
            one.enabled,
            None if one.inconsistent else tuple(bitmaps.ranges(one.name)),
        )
        for one in stored
    )
