"""The formats that inspect knows: those with a driver, and below this folder those without.

A format that is to get a driver takes its file here along, as ``formats/<name>/inspect.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple, cast

from imgtool import registry
from imgtool.format import Inspect

_WITHOUT_A_DRIVER = (
    "bochs",
    "cloop",
    "dmg",
    "iso9660",
    "luks2",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhd",
    "vhdx",
    "vmdk",
)


#: Of these it is known that the last bytes alone never tell them.
_BY_THEIR_HEADS = frozenset(("luks", "qcow2", *_WITHOUT_A_DRIVER)) - {"dmg", "vhd"}


class Signature(NamedTuple):
    """How a format is recognised, by the first or the last bytes of a file, and inspected.

    ``probe(head, tail)`` scores as :class:`imgtool.format.Format` says; it is shown more bytes
    here, and one of the two at a time. ``load`` imports the inspector, and is None where there is
    none.
    """

    name: str
    probe: Callable[[bytes, bytes], int]
    load: Callable[[], Inspect] | None

    @property
    def by_tail(self) -> bool:
        """Whether the last bytes of a file may be all that tells the format."""
        return self.name not in _BY_THEIR_HEADS


def known_signatures() -> list[Signature]:
    """Every format but raw, which claims everything."""
    found = []
    for known in registry.formats():
        if known.name != "raw":
            load = known.load_inspector if known.inspector else None
            found.append(Signature(known.name, known.probe, load))
    taken = {signature.name for signature in found}
    for name in _WITHOUT_A_DRIVER:
        if name not in taken:
            found.append(_without_a_driver(name))
    return found


def _without_a_driver(name: str) -> Signature:
    module = importlib.import_module(f"imgtool.ops.inspect.signatures.{name}")
    return Signature(name, module.probe, lambda: cast("Inspect", module.inspect))
