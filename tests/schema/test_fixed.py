"""Structures parsed in one piece: the same fields, values and errors as construct's own."""

from __future__ import annotations

import io
from typing import Any

import pytest
from construct import (
    Adapter,
    Bytes,
    Const,
    ConstructError,
    Container,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int24ub,
    Int32ub,
    Int32ul,
    Int64sb,
    Int64ub,
    StreamError,
    Struct,
    this,
)
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.schema import Incompatible
from imgtool.schema.fields import Flags, parse
from imgtool.schema.fixed import Fixed

_FIELDS = (
    "magic" / Const(b"disk"),
    "kind" / Int8ub,
    "length" / Int16ub,
    "count" / Const(7, Int16ub),
    "items" / Int32ub,
    "features" / Flags(Incompatible),
    "change" / Int64sb,
    "name" / Bytes(5),
)
_FIXED, _PLAIN = Fixed(*_FIELDS), Struct(*_FIELDS)
_SIZE = 4 + 1 + 2 + 2 + 4 + 8 + 8 + 5

_OF_QCOW2 = {name: value for name, value in vars(schema).items() if isinstance(value, Fixed)}


def outcome(structure: Struct, data: bytes) -> Any:
    """The values that are parsed, or what kind of thing is wrong."""
    try:
        return structure.parse(data)
    except ConstructError:
        return "wrong"


@given(st.binary(max_size=_SIZE + 3), st.booleans())
def test_any_bytes_are_what_they_are_to_construct(body: bytes, sound: bool) -> None:
    data = b"disk" + body[:3] + b"\0\x07" + body[3:] if sound else body
    assert outcome(_FIXED, data) == outcome(_PLAIN, data)


@pytest.mark.parametrize("name", _OF_QCOW2)
@given(data=st.data())
def test_the_structures_of_qcow2(name: str, data: st.DataObject) -> None:
    fixed = _OF_QCOW2[name]
    plain = Struct(*fixed.subcons)
    assert fixed.sizeof() == plain.sizeof()
    body = data.draw(st.binary(min_size=fixed.sizeof(), max_size=fixed.sizeof()))
    if hasattr(fixed, "magic"):
        body = schema.MAGIC + body[4:]
    found = fixed.parse(body)
    assert found == plain.parse(body)
    assert fixed.build(found) == body


def test_values_by_name_and_by_key() -> None:
    built = _PLAIN.build(
        {
            "kind": 1,
            "length": 2,
            "items": 3,
            "features": 1 << 63 | 1,
            "change": -4,
            "name": b"a" * 5,
        }
    )
    found = _FIXED.parse(bytearray(built))
    assert isinstance(found, Container)
    assert (found.magic, found.kind, found.length, found.count, found.change) == (
        *(b"disk", 1, 2, 7, -4),
    )
    assert found.features == Incompatible.DIRTY | 1 << 63
    # A dictionary has a method of that name, as with construct's own.
    assert found["items"] == 3
    with pytest.raises(AttributeError):
        _ = found.nothing


def test_inside_another_structure() -> None:
    head = Fixed("length" / Int16ub, "kind" / Int8ub)
    body = b"\0\x02\x07ab\xff"
    found = Struct("head" / head, "data" / Bytes(this.head.length)).parse(body)
    assert (found.head.kind, found.data) == (7, b"ab")
    stream = io.BytesIO(body)
    head.parse_stream(stream)
    assert stream.tell() == head.sizeof() == 3
    with pytest.raises(StreamError):
        head[2].parse(body[:5])


def test_what_is_cut_short_is_a_corrupt_image() -> None:
    with pytest.raises(CorruptImage, match="it is cut short or malformed"):
        parse(_FIXED, bytes(_SIZE - 1), "it")


class _Twice(Adapter):  # type: ignore[misc]
    def _decode(self, obj: int, context: Any, path: str) -> int:
        return 2 * obj


@pytest.mark.parametrize(
    "field",
    [Int32ul, Int24ub, GreedyBytes, Bytes(this.length), _Twice(_Twice(Int64ub)), Struct()],
    ids=["little-endian", "24 bits", "greedy", "variable", "adapted twice", "structure"],
)
def test_what_is_not_fixed_is_refused(field: Any) -> None:
    with pytest.raises(TypeError, match="no fixed length, or is not big-endian"):
        Fixed("it" / field)
