"""Structures of one length, whose fields are all parsed at once."""

from __future__ import annotations

import functools
import operator
import struct
from typing import IO, TYPE_CHECKING, Any

from construct import (
    Adapter,
    Bytes,
    Const,
    ConstError,
    Construct,
    Container,
    FormatField,
    StreamError,
    Struct,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Fixed(Struct):  # type: ignore[misc]
    """A ``Struct`` of named fields: big-endian integers, ``Bytes`` of a fixed length, and adapters
    and constants of these.

    construct parses one field after the other, at a microsecond each; here ``struct`` unpacks all
    of them in one call. Fields, values, errors and building are those of any ``Struct``.
    """

    def __init__(self, *fields: Construct) -> None:
        super().__init__(*fields)
        self._names = [field.name for field in fields]
        self._layout = struct.Struct(">" + "".join(_code(field.subcon) for field in fields))
        #: How to go on with the fields that are more than a number or bytes.
        self._decoders = [
            (field.name, functools.partial(_decode, field.subcon, field.name))
            for field in fields
            if isinstance(field.subcon, (Adapter, Const))
        ]

    @functools.cached_property
    def _container(self) -> type[Container]:
        """A ``Container`` whose fields need no Python code to be found as attributes."""
        attributes: dict[str, Any] = {
            name: property(operator.itemgetter(name))
            for name in self._names
            if not hasattr(Container, name)
        }
        return type("Container", (Container,), {"__slots__": (), **attributes})

    def parse(self, data: ReadableBuffer, **contextkw: Any) -> Container:
        """Parse the structure that lies at the front of ``data``."""
        try:
            values = self._layout.unpack_from(data)
        except struct.error as error:
            raise StreamError(str(error)) from error
        found = self._container(zip(self._names, values, strict=True))
        for name, decode in self._decoders:
            found[name] = decode(found[name])
        return found

    def _parse(self, stream: IO[bytes], context: Any, path: str) -> Container:
        return self.parse(stream.read(self._layout.size))

    def _sizeof(self, context: Any, path: str) -> int:
        return self._layout.size


def _code(field: Construct) -> str:
    """The code that ``struct`` has for a field."""
    inner = field.subcon if isinstance(field, (Adapter, Const)) else field
    if isinstance(inner, Bytes) and isinstance(inner.length, int):
        return f"{inner.length}s"
    if isinstance(inner, FormatField) and inner.fmtstr[0] == ">":
        return str(inner.fmtstr[1])
    raise TypeError(f"{field} has no fixed length, or is not big-endian")


def _decode(field: Construct, name: str, value: Any) -> Any:
    """What the number or the bytes ``value`` of a constant or an adapter stands for."""
    if isinstance(field, Adapter):
        return field._decode(value, None, name)
    if value != field.value:
        raise ConstError(f"expected {field.value!r} but parsed {value!r}", path=name)
    return value
