"""Where the fields of an image lie, read off the construct schemas themselves.

A schema is walked over the bytes that it describes, so that conditional parts and parts whose
length another field gives are found where they are. What a damaged image no longer has is left out.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import io
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from construct import (
    Adapter,
    Array,
    BytesInteger,
    Const,
    Construct,
    ConstructError,
    Container,
    FormatField,
    Renamed,
    Struct,
)

from imgtool.errors import ImageError
from imgtool.schema.fields import Flags, Table

#: Arrays of structures are walked so far; what lies behind is one field.
_MOST_ELEMENTS = 64


class Kind(enum.Enum):
    """What a field holds."""

    NUMBER = "number"
    FLAGS = "flags"
    TABLE = "table"
    BYTES = "bytes"


class Structure(NamedTuple):
    """A structure of an image: ``schema`` describes the bytes at ``offset``."""

    name: str
    offset: int
    schema: Any


class Field(NamedTuple):
    """A field of a structure. ``width`` is the bytes of one number, ``known`` the named flags."""

    name: str
    offset: int
    length: int
    kind: Kind
    width: int = 0
    order: Literal["little", "big"] = "big"
    known: int = 0

    @property
    def end(self) -> int:
        """Where the field ends, in bytes."""
        return self.offset + self.length

    def entry(self, index: int) -> Field:
        """One number of a table."""
        return self._replace(
            name=f"{self.name}[{index}]",
            offset=self.offset + index * self.width,
            length=self.width,
            kind=Kind.NUMBER,
        )


def fields(structures: Iterable[Structure], image: bytes) -> list[Field]:
    """All the fields of ``structures`` that the image really holds."""
    found: list[Field] = []
    for structure in _followed(structures):
        if 0 <= structure.offset <= len(image):
            stream = io.BytesIO(image)
            stream.seek(structure.offset)
            try:
                _walk(structure.schema, stream, Container(_params=None), structure.name, found)
            except (ConstructError, ValueError, OverflowError):
                continue
    return [field for field in found if field.length]


def _followed(structures: Iterable[Structure]) -> Iterator[Structure]:
    """The structures up to where the image is too damaged to be followed."""
    with contextlib.suppress(ImageError, ConstructError, ValueError, OverflowError):
        yield from structures


def find(found: Iterable[Field], name: str) -> Field:
    """The field, or entry of a table (``l1[3]``), that is called ``name``."""
    by_name = {field.name: field for field in found}
    if name in by_name:
        return by_name[name]
    table, _, index = name.rpartition("[")
    return by_name[table].entry(int(index.rstrip("]")))


def _walk(schema: Any, stream: io.BytesIO, context: Any, name: str, found: list[Field]) -> Any:
    """Parse ``schema`` from ``stream``, note its fields, and return the value."""
    if isinstance(schema, Renamed):
        return _walk(schema.subcon, stream, context, name, found)
    if isinstance(schema, Struct):
        inner = Container(_=context)
        for part in schema.subcons:
            where = f"{name}.{part.name}" if part.name else name
            value = _walk(part, stream, inner, where, found)
            if part.name:
                inner[part.name] = value
        return inner
    start = stream.tell()
    number = _number(schema)
    if isinstance(schema, Array):
        element = _number(schema.subcon)
        if element is None:
            count = schema.count(context) if callable(schema.count) else schema.count
            return [
                _walk(schema.subcon, stream, context, f"{name}[{index}]", found)
                for index in range(min(count, _MOST_ELEMENTS))
            ]
        field = element._replace(name=name, kind=Kind.TABLE)
    elif isinstance(schema, Table):
        field = Field(name, 0, 0, Kind.TABLE, 8)
    elif number is not None:
        field = number._replace(name=name)
    else:
        field = Field(name, 0, 0, Kind.BYTES)
    value = schema._parsereport(stream, context, name)
    found.append(field._replace(offset=start, length=stream.tell() - start))
    return value


@functools.lru_cache(maxsize=256)
def _number(schema: Construct) -> Field | None:
    """What kind of number a schema is, under whatever names and adapters; None if it is none."""
    known = 0
    while isinstance(schema, (Adapter, Const, Renamed)):
        if isinstance(schema, Flags):
            known = sum(flag.value for flag in schema._flags)
        schema = schema.subcon
    order: Literal["little", "big"]
    if isinstance(schema, FormatField):
        order = "little" if schema.fmtstr[0] == "<" else "big"
    elif isinstance(schema, BytesInteger):
        order = "little" if schema.swapped else "big"
    else:
        return None
    kind = Kind.FLAGS if known else Kind.NUMBER
    return Field("", 0, 0, kind, schema.sizeof(), order, known)
