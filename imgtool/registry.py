"""Finds formats: by name, and by looking at a file's first and last bytes.

The built-in formats are a table of module names, so that only the ones in question are imported.
Other people's come through the entry point group ``imgtool.formats``, each naming a ``Format``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from imgtool.errors import BadOption, WrongFormat
from imgtool.format import CERTAIN, PROBE_HEAD, PROBE_TAIL, Format

if TYPE_CHECKING:
    from imgtool.storage.base import Storage

ENTRY_POINTS = "imgtool.formats"

_BUILT_IN = {
    "raw": "imgtool.formats.raw",
    "qcow2": "imgtool.formats.qcow2",
    "luks": "imgtool.formats.luks",
}


@cache
def _built_in(name: str) -> Format:
    loaded: Format = importlib.import_module(_BUILT_IN[name]).FORMAT
    return loaded


@cache
def _plugins() -> dict[str, Format]:
    # Reading the metadata of every installed package is slow, so it waits until it is needed.
    from importlib.metadata import entry_points

    found: dict[str, Format] = {}
    for entry_point in entry_points(group=ENTRY_POINTS):
        loaded = entry_point.load()
        if not isinstance(loaded, Format):
            raise BadOption(
                f"The plugin '{entry_point.value}' does not name an imgtool.format.Format"
            )
        found[loaded.name] = loaded
    return found


def formats() -> Iterator[Format]:
    """Every known format, built-in ones first."""
    for name in _BUILT_IN:
        yield _built_in(name)
    for name, plugin in sorted(_plugins().items()):
        if name not in _BUILT_IN:
            yield plugin


def find(name: str) -> Format:
    """Return the format called ``name`` (or so aliased); raises :class:`BadOption`."""
    if name in _BUILT_IN:
        return _built_in(name)
    for candidate in formats():
        if name == candidate.name or name in candidate.aliases:
            return candidate
    known = ", ".join(candidate.name for candidate in formats())
    raise BadOption(f"Unknown format '{name}': imgtool knows {known}")


def for_suffix(path: str) -> Format | None:
    """Return the format whose files are usually called so, or None."""
    lower = path.lower()
    for candidate in formats():
        if lower.endswith(candidate.suffixes):
            return candidate
    return None


def probe_bytes(head: bytes, tail: bytes) -> Format:
    """Return the format that claims these bytes most strongly; raw claims everything weakly."""
    best, best_score = None, -1
    for known in formats():
        score = known.probe(head, tail)
        if score > best_score:
            best, best_score = known, score
        if score >= CERTAIN:
            break  # what comes behind it need not even be loaded
    assert best is not None
    return best


def probe(storage: Storage) -> Format:
    """Return the format of the file in ``storage``, judged by its contents."""
    return probe_bytes(*_ends(storage))


def expect(storage: Storage, wanted: Format) -> None:
    """Raise :class:`WrongFormat` unless ``storage`` can be an image of the format ``wanted``."""
    # What claims every file need not see any, and can be salvaged from the first sector on.
    if not wanted.probe(b"", b"") and not wanted.probe(*_ends(storage)):
        raise WrongFormat(f"Image is not in {wanted.name} format", filename=storage.name)


def _ends(storage: Storage) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file, as a probe is shown them."""
    size = storage.size()
    head = storage.read_at(0, min(size, PROBE_HEAD))
    length = min(size, PROBE_TAIL)
    try:
        tail = storage.read_at(size - length, length)
    except OSError:
        # A bad sector there is no signature, and says nothing against one at the head.
        tail = b""
    return head, tail
