"""construct fields that imgtool's schemas share, and the border where construct's errors end.

Schemas take bytes and give values, and never hold a file.
"""

from __future__ import annotations

import enum
import sys
from array import array
from typing import IO, TYPE_CHECKING, Any, TypeVar

from construct import Adapter, Construct, ConstructError, Int64ub, StreamError

from imgtool.errors import CorruptImage

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FlagType = TypeVar("FlagType", bound=enum.IntFlag)

_BYTE_ORDER_DIFFERS = sys.byteorder == "little"


def big_endian_u64(data: ReadableBuffer) -> array[int]:
    """Return big-endian 64-bit integers as an array; a table of 8192 takes about 10 µs."""
    table = array("Q")
    table.frombytes(data)
    if _BYTE_ORDER_DIFFERS:
        table.byteswap()
    return table


def big_endian_bytes(table: array[int]) -> bytes:
    """The inverse of :func:`big_endian_u64`."""
    if not _BYTE_ORDER_DIFFERS:
        return table.tobytes()
    swapped = table[:]
    swapped.byteswap()
    return swapped.tobytes()


class Table(Construct):  # type: ignore[misc]
    """A table of ``count`` big-endian 64-bit entries, handed over to ``array`` in one piece.

    construct's own ``Array(count, Int64ub)`` is hundreds of times slower. The caller caps
    ``count`` before it parses.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def _parse(self, stream: IO[bytes], context: Any, path: str) -> array[int]:
        data = stream.read(self.count * 8)
        if len(data) != self.count * 8:
            raise StreamError(f"table of {self.count} entries is cut short", path=path)
        return big_endian_u64(data)

    def _build(self, obj: array[int], stream: IO[bytes], context: Any, path: str) -> array[int]:
        if len(obj) != self.count:
            raise StreamError(f"table has {len(obj)} entries, not {self.count}", path=path)
        stream.write(big_endian_bytes(obj))
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        return self.count * 8


class Flags(Adapter):  # type: ignore[misc]
    """A 64-bit set of flags as an ``IntFlag`` that keeps the bits it has no name for."""

    def __init__(self, flags: type[FlagType]) -> None:
        super().__init__(Int64ub)
        self._flags = flags

    def _decode(self, obj: int, context: Any, path: str) -> enum.IntFlag:
        return self._flags(obj)

    def _encode(self, obj: int, context: Any, path: str) -> int:
        return int(obj)


def parse(schema: Any, data: ReadableBuffer, what: str, offset: int | None = None) -> Any:
    """Parse ``data``; ``what`` and ``offset`` name the structure if it is cut short or wrong.

    Raises :class:`~imgtool.errors.CorruptImage` whatever construct finds.
    """
    try:
        return schema.parse(data)
    except (ConstructError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise CorruptImage(f"{what} is cut short or malformed", offset) from error


def build(schema: Any, value: Any) -> bytes:
    """Build the bytes of ``value``. What imgtool builds fits its schema, so errors are bugs."""
    built: bytes = schema.build(value)
    return built
