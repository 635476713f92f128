"""Recipes: a damaged image as a seed image and the few fields that differ from it, as JSON.

Fields are named, so that a recipe still means the same when the seed image's layout changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.kit.fuzz.layout import Field, find

_PLACE = re.compile(r"(?P<name>.+?)(?:\+(?P<skip>\d+))?")


class Edit(NamedTuple):
    """Bytes to put at ``place``: a field, ``field+skip``, or ``@offset``."""

    place: str
    data: bytes


@dataclass(frozen=True)
class Recipe:
    """An image: ``seed`` changed by ``edits``, in order, and cut or filled to ``length``.

    ``operations`` seeds what is done to it where it is to be written.
    """

    subject: str
    seed: str
    edits: tuple[Edit, ...] = ()
    length: int | None = None
    operations: int = 0

    def apply(self, image: bytes, fields: Sequence[Field]) -> bytes:
        """Return the image that the recipe stands for; ``image`` and ``fields`` are the seed's."""
        changed = bytearray(image)
        for place, data in self.edits:
            offset = _offset(place, fields)
            if offset > len(changed):
                changed.extend(bytes(offset - len(changed)))
            changed[offset : offset + len(data)] = data
        if self.length is not None:
            changed.extend(bytes(max(0, self.length - len(changed))))
            del changed[self.length :]
        return bytes(changed)

    def to_json(self) -> str:
        """Return the recipe as text, as the corpus keeps it."""
        values: dict[str, object] = {"subject": self.subject, "seed": self.seed}
        values["edits"] = {place: data.hex() for place, data in merged(self.edits)}
        if self.length is not None:
            values["length"] = self.length
        if self.operations:
            values["operations"] = self.operations
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        edits = tuple(Edit(place, bytes.fromhex(data)) for place, data in values["edits"].items())
        return cls(
            values["subject"],
            values["seed"],
            edits,
            values.get("length"),
            values.get("operations", 0),
        )


def difference(image: bytes, changed: bytes) -> tuple[tuple[Edit, ...], int | None]:
    """The edits, by offset, and the length, that make ``changed`` of ``image``."""
    edits: list[Edit] = []
    size = 1 << 6
    for start in range(0, len(changed), size):
        part = changed[start : start + size]
        if part != image[start : start + size]:
            if edits and int(edits[-1].place[1:]) + len(edits[-1].data) == start:
                edits[-1] = edits[-1]._replace(data=edits[-1].data + part)
            else:
                edits.append(Edit(f"@{start}", part))
    return tuple(edits), None if len(changed) == len(image) else len(changed)


def merged(edits: Sequence[Edit]) -> list[Edit]:
    """Edits without those that a later one at the same place replaces whole."""
    kept: dict[str, bytes] = {}
    for place, data in edits:
        before = kept.pop(place, b"")
        kept[place] = data + before[len(data) :]
    return [Edit(place, data) for place, data in kept.items()]


def _offset(place: str, fields: Sequence[Field]) -> int:
    if place.startswith("@"):
        return int(place[1:])
    match = _PLACE.fullmatch(place)
    assert match is not None, place
    return find(fields, match["name"]).offset + int(match["skip"] or 0)
