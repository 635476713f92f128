"""One execution: the bytes of a single structure, parsed and built."""

from __future__ import annotations

from imgtool.errors import CorruptImage, ImageError
from imgtool.schema.fields import build, parse
from tests.kit.fuzz.rules import Broken, memory_limit, time_limit
from tests.kit.fuzz.subject import Subject


def take_apart(subject: Subject, data: bytes) -> None:
    """Parse ``data``, whose first byte says as what. Raises whatever breaks a rule.

    What can be parsed is built into the same bytes again, and what is built is parsed as the same.
    """
    names = (*subject.schemas, *subject.parsers)
    if not data or not names:
        return
    name, body = names[data[0] % len(names)], data[1:]
    with time_limit(), memory_limit():
        if name in subject.schemas:
            round_trip(subject.schemas[name], body, name)
        else:
            try:
                subject.parsers[name](body)
            except ImageError:
                return


def round_trip(schema: object, data: bytes, name: str) -> None:
    """Hold what is parsed, if anything is, against what is built of it."""
    try:
        value = parse(schema, data, name)
    except CorruptImage:
        return
    built = build(schema, value)
    if built != data[: len(built)]:
        raise Broken(f"{name}: {data[: len(built)].hex()} is built as {built.hex()}")
    if build(schema, parse(schema, built, name)) != built:
        raise Broken(f"{name}: what is built is parsed differently")
