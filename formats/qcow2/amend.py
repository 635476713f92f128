"""Amend: changing what kind of image an image is. Each change is switched by one header write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from imgtool.device import BlockDevice
from imgtool.errors import BadOption
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.downgrade import downgrade, judge_downgrade
from imgtool.formats.qcow2.header import Header, os_bytes
from imgtool.formats.qcow2.options import refcount_order, version_of
from imgtool.formats.qcow2.refcount_width import change_refcount_width, judge_refcount_width
from imgtool.formats.qcow2.schema import Autoclear, Compatible, ExtensionType
from imgtool.formats.qcow2.writable import WritableQcow2

if TYPE_CHECKING:
    Progress = Callable[[int, int], None]


def amend(device: BlockDevice, options: Mapping[str, Any], progress: Progress | None) -> None:
    """Change an open image as ``options`` say; they have the types of the format's table.

    Everything that can be refused is refused before anything is changed. Raises
    :class:`BadOption` and :class:`ImageError`.
    """
    assert isinstance(device, WritableQcow2)
    with device.exclusive():
        device.flush()
        header = device.header
        version = version_of(options["compat"]) if "compat" in options else header.version
        order = header.geometry.refcount_order
        if "refcount_bits" in options:
            order = refcount_order(options["refcount_bits"])
        _judge(device, version, order, options)

        if version > header.version:
            device.metadata.switch_header(_upgraded(header))
        if order != header.geometry.refcount_order:
            change_refcount_width(device, order, progress)
        if "lazy_refcounts" in options and version >= 3:
            flag = Compatible.LAZY_REFCOUNTS if options["lazy_refcounts"] else Compatible(0)
            kept = device.header.compatible & ~Compatible.LAZY_REFCOUNTS
            device.metadata.switch_header(device.header._replace(compatible=kept | flag))
        if options.get("data_file"):
            name = os_bytes(options["data_file"])
            device.metadata.switch_header(
                device.header.with_extension(ExtensionType.DATA_FILE, name)
            )
        if not options.get("data_file_raw", True):
            rest = device.header.autoclear & ~Autoclear.RAW_EXTERNAL_DATA
            device.metadata.switch_header(device.header._replace(autoclear=rest))
        if "size" in options:
            device.resize(options["size"])
        if version < header.version:
            downgrade(device, progress)


def _judge(device: WritableQcow2, version: int, order: int, options: Mapping[str, Any]) -> None:
    header = device.header
    if "backing_file" in options or "backing_fmt" in options:
        given = (options.get("backing_file"), options.get("backing_fmt"))
        if given != (header.backing_file, header.backing_format):
            raise BadOption("Cannot amend the backing file; you can use 'imgtool rebase' instead")
    lazy = bool(header.compatible & Compatible.LAZY_REFCOUNTS)
    if options.get("lazy_refcounts") and version < 3 and not lazy:
        raise BadOption(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 "
            "or greater)"
        )
    if version < 3 and order != 4:
        if version == header.version:
            raise BadOption(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use "
                "compat=1.1 or greater)"
            )
        raise BadOption("compat=0.10 requires refcount_bits=16")
    if options.get("data_file") is not None and not header.has_data_file:
        raise BadOption("data-file can only be set for images that use an external data file")
    if options.get("data_file_raw") and not header.data_file_raw:
        raise BadOption("data-file-raw cannot be set on existing images")
    if version < header.version:
        judge_downgrade(device)
    if order != header.geometry.refcount_order:
        judge_refcount_width(device, order)


def _upgraded(header: Header) -> Header:
    return header._replace(version=3, header_length=schema.HEADER_LENGTH)
