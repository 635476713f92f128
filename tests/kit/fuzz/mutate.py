"""Changes images field by field: by what a field is, and by what other fields of the image hold."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.kit.fuzz.layout import Field, Kind
from tests.kit.fuzz.recipe import Edit, merged

#: What has meant something else, somewhere, than the name that it was.
_TEXTS = (
    b"json:{}", b"nbd://h/x", b"/etc/passwd", b"../../x", b"a\nb\x1b[2J", b"\xff\xfe\x80",
    b"", b"raw", b"qcow2", b"%s%n", b"\xf0\x9f\x92\xbe" * 8, b"a" * 64,
)  # fmt: skip

_STEPS = (1, 2, 7, 8, 9, 63, 64, 511, 512, 513, 4096, 65536)


class Mutator:
    """Makes edits of one image whose fields are known. All chance comes from ``chance``."""

    def __init__(self, image: bytes, fields: Sequence[Field]) -> None:
        self._image = image
        self._fields = fields
        self._tables = [field for field in fields if field.kind is Kind.TABLE]
        self._bytes = [field for field in fields if field.kind is Kind.BYTES]
        self._numbers = [field for field in fields if field.kind in (Kind.NUMBER, Kind.FLAGS)]
        #: Numbers that mean something in this image: its fields, and where all of it lies.
        self._pool = sorted(
            {self._value(field) for field in self._numbers}
            | {field.offset for field in fields}
            | {field.end for field in fields}
            | {field.length for field in fields}
            | {len(image), len(image) + 512, -(-len(image) // 65536) * 65536}
        )

    def mutate(self, chance: random.Random) -> tuple[tuple[Edit, ...], int | None]:
        """Return a few edits, and the length that the file is to have, if another."""
        edits: list[Edit] = []
        length = None
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            if chance.random() < 0.04 or not self._fields:
                length = self._length(chance)
            else:
                edits += self._edit(chance)
        return tuple(merged(edits)), length

    def _edit(self, chance: random.Random) -> list[Edit]:
        choice = chance.random()
        if choice < 0.5 and self._numbers:
            field = chance.choice(self._numbers)
            return [_put(field, self._number(chance, field))]
        if choice < 0.78 and self._tables:
            return self._table(chance, chance.choice(self._tables))
        if choice < 0.9 and self._bytes:
            return self._blob(chance, chance.choice(self._bytes))
        if choice < 0.95 and self._numbers:
            return self._swap(chance)
        return self._whole(chance)

    def _value(self, field: Field) -> int:
        data = self._image[field.offset : field.end]
        return int.from_bytes(data, field.order)

    def _number(self, chance: random.Random, field: Field) -> int:
        old, bits = self._value(field), 8 * field.length
        top = (1 << bits) - 1
        if field.kind is Kind.FLAGS and chance.random() < 0.7:
            named = [bit for bit in range(bits) if field.known >> bit & 1]
            return old ^ 1 << chance.choice((*named, *named, chance.randrange(bits)))
        way = chance.randrange(8)
        if way == 0:
            return chance.choice((0, 1, 2, top, top - 1, top >> 1, (top >> 1) + 1))
        if way == 1:
            return (1 << chance.randrange(bits)) + chance.choice((-1, 0, 0, 1))
        if way == 2:
            return old + chance.choice(_STEPS) * chance.choice((-1, 1))
        if way == 3:
            return old ^ 1 << chance.randrange(bits)
        if way == 4:
            return chance.choice((old << 1, old >> 1, old << 9, old >> 9, old * 3, ~old))
        if way == 5:
            return chance.choice(self._pool)
        if way == 6:
            return chance.choice(self._pool) + chance.choice(_STEPS) * chance.choice((-1, 0, 1))
        return chance.getrandbits(chance.randrange(1, bits + 1))

    def _table(self, chance: random.Random, table: Field) -> list[Edit]:
        count = table.length // table.width
        used = [index for index in range(min(count, 4096)) if self._value(table.entry(index))]
        near = [*used, *(index + 1 for index in used), 0, count - 1, chance.randrange(count)]
        index = min(count - 1, chance.choice(near))
        entry = table.entry(index)
        other = self._value(table.entry(min(count - 1, chance.choice(near))))
        way = chance.randrange(6)
        if way == 0:
            return [_put(entry, other)]
        if way == 1:
            # What lies there stays what it was, somewhere else.
            flags = self._value(entry) & 0xC0000000000001FF
            return [_put(entry, chance.choice(self._pool) | flags)]
        if way == 2:
            bit = chance.choice((0, 1, 5, 8, 9, 12, 55, 56, 61, 62, 63)) % (8 * table.width)
            return [_put(entry, self._value(entry) ^ 1 << bit)]
        if way == 3:
            length = min(count - index, chance.choice((2, 3, 16, 512, count)))
            whole = other if chance.random() < 0.7 else self._number(chance, entry)
            data = _bytes(entry, whole) * length
            return [Edit(entry.name, data)]
        return [_put(entry, self._number(chance, entry))]

    def _blob(self, chance: random.Random, field: Field) -> list[Edit]:
        way = chance.randrange(5)
        if way == 0:
            return [Edit(field.name, chance.choice(_TEXTS)[: field.length].ljust(1, b"\0"))]
        if way == 1:
            fill = chance.choice((b"\0", b"\xff", b"\n", b"A"))
            return [Edit(field.name, fill * min(field.length, 1 << chance.randrange(17)))]
        skip = chance.randrange(field.length)
        if way == 2:
            other = chance.choice(self._fields)
            data = self._image[other.offset : min(other.end, other.offset + 4096)]
            return [Edit(f"{field.name}+{skip}", data[: field.length - skip])]
        if way == 3:
            length = min(field.length - skip, 1 << chance.randrange(7))
            return [Edit(f"{field.name}+{skip}", chance.randbytes(length))]
        old = self._image[field.offset + skip]
        return [Edit(f"{field.name}+{skip}", bytes((old ^ 1 << chance.randrange(8),)))]

    def _swap(self, chance: random.Random) -> list[Edit]:
        one = chance.choice(self._numbers)
        other = chance.choice([field for field in self._numbers if field.length == one.length])
        return [_put(one, self._value(other)), _put(other, self._value(one))]

    def _whole(self, chance: random.Random) -> list[Edit]:
        """Put one field's bytes over another's, and beyond it: one structure inside another."""
        target, other = chance.choice(self._fields), chance.choice(self._fields)
        length = chance.choice((other.length, target.length, 64, 512))
        data = self._image[other.offset : other.offset + min(length, 1 << 16)]
        return [Edit(target.name, chance.choice((data, data, bytes(len(data)))))]

    def _length(self, chance: random.Random) -> int:
        edge = chance.choice(self._pool)
        if not 0 <= edge <= 2 * len(self._image):
            edge = len(self._image)
        return max(0, edge + chance.choice((-513, -512, -8, -1, 0, 1, 8, 511, 512, 65536)))


def _bytes(field: Field, value: int) -> bytes:
    return (value & ((1 << 8 * field.width) - 1)).to_bytes(field.width, field.order)


def _put(field: Field, value: int) -> Edit:
    return Edit(field.name, _bytes(field, value))
