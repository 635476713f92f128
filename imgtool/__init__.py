"""imgtool: create, convert, inspect and read virtual machine disk images.

>>> import imgtool
>>> imgtool.create("disk.qcow2", "10G")
>>> with imgtool.open("disk.qcow2") as disk:
...     boot_sector = disk.read_at(0, 512)

Importing the package imports nothing else: each name is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs milliseconds
if TYPE_CHECKING:
    from imgtool.api import (
        amend,
        apply_snapshot,
        bitmap,
        check,
        commit,
        compact,
        compare,
        convert,
        create,
        create_snapshot,
        delete_snapshot,
        dirty_ranges,
        hash,
        info,
        inspect,
        map,
        measure,
        open,
        rebase,
        resize,
        snapshots,
    )
    from imgtool.budget import Budget
    from imgtool.chain import OpenPolicy, Reference, Trust
    from imgtool.description import SnapshotInfo
    from imgtool.device import BlockDevice
    from imgtool.errors import (
        BadOption,
        Closed,
        CorruptImage,
        ImageError,
        InUse,
        NotPermitted,
        OutOfRange,
        OverBudget,
        ReadOnly,
        UnsupportedFeature,
        WrongFormat,
    )
    from imgtool.extent import Extent, Kind
    from imgtool.format import Measurement
    from imgtool.inspection import Inspection
    from imgtool.ops.check import CheckReport
    from imgtool.ops.compare import Comparison
    from imgtool.ops.info import ImageInfo
    from imgtool.ops.inspect import Inspector
    from imgtool.secrets import Secret
    from imgtool.storage.base import Storage

__version__ = "0.1.0"

__all__ = [
    "BadOption",
    "BlockDevice",
    "Budget",
    "CheckReport",
    "Closed",
    "Comparison",
    "CorruptImage",
    "Extent",
    "ImageError",
    "ImageInfo",
    "InUse",
    "Inspection",
    "Inspector",
    "Kind",
    "Measurement",
    "NotPermitted",
    "OpenPolicy",
    "OutOfRange",
    "OverBudget",
    "ReadOnly",
    "Reference",
    "Secret",
    "SnapshotInfo",
    "Storage",
    "Trust",
    "UnsupportedFeature",
    "WrongFormat",
    "amend",
    "apply_snapshot",
    "bitmap",
    "check",
    "commit",
    "compact",
    "compare",
    "convert",
    "create",
    "create_snapshot",
    "delete_snapshot",
    "dirty_ranges",
    "hash",
    "info",
    "inspect",
    "map",
    "measure",
    "open",
    "rebase",
    "resize",
    "snapshots",
]

_HOMES = {
    "imgtool.api": (
        "amend",
        "apply_snapshot",
        "bitmap",
        "check",
        "commit",
        "compact",
        "compare",
        "convert",
        "create",
        "create_snapshot",
        "delete_snapshot",
        "dirty_ranges",
        "hash",
        "info",
        "inspect",
        "map",
        "measure",
        "open",
        "rebase",
        "resize",
        "snapshots",
    ),
    "imgtool.budget": ("Budget",),
    "imgtool.chain": ("OpenPolicy", "Reference", "Trust"),
    "imgtool.description": ("SnapshotInfo",),
    "imgtool.device": ("BlockDevice",),
    "imgtool.errors": (
        "BadOption",
        "Closed",
        "CorruptImage",
        "ImageError",
        "InUse",
        "NotPermitted",
        "OutOfRange",
        "OverBudget",
        "ReadOnly",
        "UnsupportedFeature",
        "WrongFormat",
    ),
    "imgtool.extent": ("Extent", "Kind"),
    "imgtool.format": ("Measurement",),
    "imgtool.inspection": ("Inspection",),
    "imgtool.ops.check": ("CheckReport",),
    "imgtool.ops.compare": ("Comparison",),
    "imgtool.ops.info": ("ImageInfo",),
    "imgtool.ops.inspect": ("Inspector",),
    "imgtool.secrets": ("Secret",),
    "imgtool.storage.base": ("Storage",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # so that checkers know a misspelt name when they see one

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'imgtool' has no attribute '{name}'")
        import importlib

        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
