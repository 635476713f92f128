"""Info: what an image is, from its metadata alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from imgtool import registry
from imgtool.chain import Opener, Reference, has_protocol
from imgtool.description import Description, SnapshotInfo
from imgtool.errors import ImageError
from imgtool.storage.base import Storage
from imgtool.units import align_up

if TYPE_CHECKING:
    from imgtool.device import BlockDevice

#: qemu counts the length of host files in whole sectors.
SECTOR = 512

#: The options that show in an image's name, and the order in which QEMU has them.
_SHOWN = ("encrypt.key-secret", "key-secret", "offset", "size")
_SHOWN_ORDER = ("encrypt.key-secret", "offset", "driver", "size", "file", "key-secret")


class ChildInfo(NamedTuple):
    """A node that another reads from, by role (``file``)."""

    name: str
    info: ImageInfo


class ImageInfo(NamedTuple):
    """What is known of an image, or of the host file in which one lies.

    Sizes are bytes: ``virtual_size`` is what a guest sees (of a host file, its length),
    ``actual_size`` what the file occupies on the host. ``format`` is ``file`` or ``host_device``
    for host files. ``backing_filename`` is as the image has it, ``full_backing_filename`` the path
    it stands for, None where there is no telling; neither is opened. ``format_specific`` are facts
    that only this format has, named as in QEMU's JSON; None if it has none.
    """

    filename: str
    format: str
    virtual_size: int
    actual_size: int
    children: Sequence[ChildInfo] = ()
    cluster_size: int | None = None
    encrypted: bool = False
    compressed: bool = False
    dirty_flag: bool = False
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: Sequence[SnapshotInfo] = ()
    format_specific: Mapping[str, Any] | None = None
    #: The images below, from the nearest on, if they were asked for.
    backing_chain: Sequence[ImageInfo] = ()

    @property
    def is_host_file(self) -> bool:
        """Whether this describes a host file and not an image."""
        return self.format in ("file", "host_device")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``qemu-img info --output=json`` prints, keys in its order.

        The images of ``backing_chain`` are not part of it: QEMU lists them side by side.
        """
        values: dict[str, Any] = {
            "children": [
                {"name": child.name, "info": child.info.to_dict()} for child in self.children
            ]
        }
        if self.backing_filename_format is not None:
            values["backing-filename-format"] = self.backing_filename_format
        if self.snapshots:
            values["snapshots"] = [snapshot.to_dict() for snapshot in self.snapshots]
        values["virtual-size"] = self.virtual_size
        values["filename"] = self.filename
        if self.cluster_size is not None:
            values["cluster-size"] = self.cluster_size
        values["format"] = self.format
        values["actual-size"] = self.actual_size
        if self.format_specific is not None:
            kind = "file" if self.is_host_file else self.format
            values["format-specific"] = {"type": kind, "data": dict(self.format_specific)}
        if self.compressed:
            values["compressed"] = True
        if self.full_backing_filename is not None:
            values["full-backing-filename"] = self.full_backing_filename
        if self.encrypted:
            values["encrypted"] = True
        if self.backing_filename is not None:
            values["backing-filename"] = self.backing_filename
        values["dirty-flag"] = self.dirty_flag
        return values


def info(
    reference: Reference, *, opener: Opener | None = None, backing_chain: bool = False
) -> ImageInfo:
    """Describe an image, opening no file but its own; with ``backing_chain``, those below as well.

    Raises :class:`ImageError` or ``OSError`` if it, or one below, can't be opened or is damaged.
    """
    alone = replace(opener or Opener(), follow=False, names_followed=backing_chain)
    if not backing_chain:
        with alone.reference(reference) as device:
            return _described(device, reference)
    first, *below = _chain(reference, alone)
    return first._replace(backing_chain=tuple(below))


def _chain(reference: Reference, alone: Opener) -> Iterator[ImageInfo]:
    device: BlockDevice | None = alone.reference(reference)
    alone = replace(alone, overrides=reference.children)
    while device is not None:
        with device:
            described = _described(device, reference)
            yield described
            storage = _file(device)
            alone = replace(alone, trail=(*alone.trail, storage.identity or object()))
            below = alone.named_backing(
                storage, described.backing_filename, described.backing_filename_format
            )
        device, alone, reference = below, replace(alone, overrides={}), Reference(storage.name)


def _described(device: BlockDevice, reference: Reference) -> ImageInfo:
    try:
        return describe(device, reference)
    except ImageError as error:
        raise error.while_opening(device.name) from error.__cause__


def describe(device: BlockDevice, reference: Reference | None = None) -> ImageInfo:
    """Describe an open image; ``reference`` is how the user described it."""
    storage = _file(device)
    describer = registry.find(device.format).load_describer()
    found = describer(device) if describer is not None else Description()
    backing = found.backing_filename
    return ImageInfo(
        filename=_shown_name(device, reference),
        format=device.format,
        virtual_size=device.size,
        actual_size=storage.allocated(),
        children=(ChildInfo("file", describe_file(storage)),),
        cluster_size=found.cluster_size,
        encrypted=found.encrypted,
        compressed=found.compressed,
        dirty_flag=found.dirty,
        backing_filename=backing,
        full_backing_filename=None
        if backing is None
        else _full_name(device.name, storage, backing),
        backing_filename_format=found.backing_format,
        snapshots=found.snapshots,
        format_specific=found.specific,
    )


def describe_file(storage: Storage) -> ImageInfo:
    """Describe a host file."""
    number = storage.fileno()
    is_device = number is not None and stat.S_ISBLK(os.fstat(number).st_mode)
    return ImageInfo(
        filename=storage.name,
        format="host_device" if is_device else "file",
        virtual_size=align_up(storage.size(), SECTOR),
        actual_size=storage.allocated(),
        format_specific={},
    )


def _file(device: BlockDevice) -> Storage:
    storage = device.children["file"]
    assert isinstance(storage, Storage)
    return storage


def _shown_name(device: BlockDevice, reference: Reference | None) -> str:
    """The file's name; if options make a disk of a part of it, all that it takes to open it."""
    options = {} if reference is None else reference.options
    whole: dict[str, Any] = {
        name: options[name] for name in _SHOWN if isinstance(options.get(name), (str, int))
    }
    if not whole:
        return device.name
    import json

    whole.update(driver=device.format, file={"driver": "file", "filename": device.name})
    return f"json:{json.dumps({name: whole[name] for name in _SHOWN_ORDER if name in whole})}"


def _full_name(image: str, storage: Storage, name: str) -> str | None:
    """The path that a stored name stands for, put together as qemu-img does."""
    if os.path.isabs(name) or has_protocol(name):
        return name
    if storage.directory is None:
        return None
    return image[: image.rfind("/") + 1] + name
