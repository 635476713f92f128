"""Preallocation: a host cluster for every guest cluster, from the start."""

from __future__ import annotations

from imgtool.formats.qcow2.options import CreateOptions
from imgtool.formats.qcow2.writable import WritableQcow2

#: Guest bytes mapped at a time.
_STEP = 1 << 30


def preallocate(device: WritableQcow2, options: CreateOptions) -> None:
    """Map the whole disk, and reserve or write host storage as ``options.preallocation`` says.

    Over a backing image (which only extended L2 entries allow) reserved clusters are not linked:
    the disk has them, with no subcluster allocated, and the backing image still shows.
    """
    size = options.size
    visible = options.backing_file is None
    end = 0
    for offset in range(0, size, _STEP):
        for extent in device.reserve(offset, min(_STEP, size - offset)):
            assert extent.storage is not None
            assert extent.host_offset is not None
            if options.preallocation in ("falloc", "full"):
                extent.storage.preallocate(
                    extent.host_offset, extent.length, full=options.preallocation == "full"
                )
            end = max(end, extent.host_offset + extent.length)
            if visible:
                device.link((extent,))
    if device.data is device.storage:
        device.storage.truncate(max(end, device.storage.size()))
