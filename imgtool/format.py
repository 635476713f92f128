"""Format: what a plugin declares about an image format.

A plugin is one folder under ``formats/`` (or a package that registers the entry point group
``imgtool.formats``) whose ``__init__`` holds ``FORMAT``. Declaring a format imports nothing heavy:
``driver`` names the module that does the work, and it is loaded when an image is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from imgtool.options import OptionTable

if TYPE_CHECKING:
    from imgtool.chain import Opener
    from imgtool.device import BlockDevice
    from imgtool.storage.base import Storage

#: How many bytes of the start and of the end of a file a probe is shown.
PROBE_HEAD = 4096
PROBE_TAIL = 1024


class Driver(Protocol):
    """What a driver module offers. Values of ``options`` have been checked against the table."""

    def open_device(
        self, storage: Storage, opener: Opener, options: Mapping[str, Any]
    ) -> BlockDevice:
        """Return the disk in ``storage``; files that the image names are asked of ``opener``.

        Takes over ``storage``: closing the device closes it. On error it is left open.
        """

    def create(self, storage: Storage, size: int, opener: Opener, options: Mapping[str, Any]) -> None:
        """Write an empty image of ``size`` bytes into ``storage``, which is empty.

        The structure that makes the file an image comes last.
        """


@dataclass(frozen=True)
class Format:
    """An image format.

    ``probe(head, tail)`` scores from 0 (certainly not) to 100 (certainly) how likely a file is to
    be of this format, given its first and last bytes. ``features`` lists what the driver can do:
    ``create``, ``write``, ``resize``, ``backing``, ``compress``, ``check``, ``snapshots``,
    ``bitmaps``, ``zero-clusters``, ``data-file``.
    """

    name: str
    description: str
    probe: Callable[[bytes, bytes], int]
    driver: str
    aliases: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    create_options: OptionTable = field(default_factory=OptionTable)
    open_options: OptionTable = field(default_factory=OptionTable)
    features: frozenset[str] = frozenset()

    def load(self) -> Driver:
        """Import the driver module."""
        return cast(Driver, importlib.import_module(self.driver))
