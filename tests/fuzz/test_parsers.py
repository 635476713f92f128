"""Hypothesis on everything that parses: structures, sizes, option lists, names."""

from __future__ import annotations

import contextlib
import json
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgtool.chain import Reference, Settings, has_protocol
from imgtool.cli.names import reference
from imgtool.errors import BadOption, ImageError
from imgtool.names import file_path, recorded_path
from imgtool.options import split_pairs
from imgtool.schema.fields import build, parse
from imgtool.units import MAX_SIZE, parse_size
from tests.fuzz.subjects import SUBJECTS
from tests.fuzz.words import understand
from tests.kit.fuzz.layout import Kind, Structure, fields
from tests.kit.fuzz.structures import round_trip

_SCHEMAS = {
    f"{subject.format}-{name}": schema
    for subject in SUBJECTS.values()
    for name, schema in subject.schemas.items()
}
_PARSERS = {
    f"{subject.format}-{name}": parser
    for subject in SUBJECTS.values()
    for name, parser in subject.parsers.items()
}


def _length(schema: Any) -> int:
    """The bytes of a structure; one that takes all there is has some."""
    return (
        sum(
            part.sizeof() if part.name != "unknown" else 7
            for part in getattr(schema, "subcons", ())
        )
        or schema.sizeof()
    )


@pytest.mark.parametrize("name", _SCHEMAS)
@given(data=st.data())
def test_structures_are_built_as_they_were_parsed(name: str, data: st.DataObject) -> None:
    schema = _SCHEMAS[name]
    length = _length(schema)
    body = bytearray(data.draw(st.binary(min_size=length, max_size=length)))
    if hasattr(schema, "magic"):
        # Without the right one nothing behind it is looked at.
        body[: schema.magic.sizeof()] = schema.magic.build(None)
    assert build(schema, parse(schema, bytes(body), name)) == bytes(body)


@pytest.mark.parametrize("name", _SCHEMAS)
@given(body=st.binary(max_size=600))
def test_structures_of_any_bytes(name: str, body: bytes) -> None:
    round_trip(_SCHEMAS[name], body, name)


@pytest.mark.parametrize("name", _SCHEMAS)
@given(data=st.data())
def test_every_field_is_found_where_it_is(name: str, data: st.DataObject) -> None:
    """What the mutator takes for a field is one: its bytes are the value that is parsed."""
    schema = _SCHEMAS[name]
    body = bytearray(_length(schema))
    if hasattr(schema, "magic"):
        body[: schema.magic.sizeof()] = schema.magic.build(None)
    found = fields([Structure("it", 0, schema)], bytes(body))
    assert sum(field.length for field in found) == len(body)
    numbers = [field for field in found if field.kind is Kind.NUMBER and "magic" not in field.name]
    if not numbers:
        return
    field = data.draw(st.sampled_from(numbers))
    value = data.draw(st.integers(0, (1 << 8 * field.length) - 1))
    body[field.offset : field.end] = value.to_bytes(field.length, "big")
    assert f"{value}" in str(parse(schema, bytes(body), name))


@pytest.mark.parametrize("name", _PARSERS)
@given(body=st.binary(max_size=700))
def test_judges_of_any_bytes(name: str, body: bytes) -> None:
    with contextlib.suppress(ImageError):
        _PARSERS[name](body)


# What people type

_SUFFIXES = "bkKmMgGtTpPeE"


@given(
    whole=st.integers(0, 1 << 64),
    fraction=st.none() | st.from_regex(r"[0-9]{0,20}", fullmatch=True),
    suffix=st.sampled_from(("", *_SUFFIXES)),
)
def test_sizes_mean_what_they_say(whole: int, fraction: str | None, suffix: str) -> None:
    number = str(whole) if fraction is None else f"{whole}.{fraction}"
    shift = 10 * " kmgtpe".index(suffix.lower()) if suffix.lower() not in ("", "b") else 0
    scaled = Decimal(number if fraction else str(whole)) * (1 << shift)
    try:
        found = parse_size(number + suffix)
    except BadOption:
        assert scaled >= MAX_SIZE or (fraction is not None and not shift)
    else:
        assert found == int(scaled.quantize(Decimal(1), ROUND_HALF_UP))


@given(st.integers(-(1 << 70), 1 << 70))
def test_sizes_that_are_numbers(value: int) -> None:
    if 0 <= value <= MAX_SIZE:
        assert parse_size(value) == parse_size(str(value)) == parse_size(hex(value)) == value
    else:
        with pytest.raises(BadOption):
            parse_size(value)


@given(st.text())
@example("9" * 5000)
@example("9" * 5000 + "k")
@example("0." + "9" * 5000 + "k")
@example("0x" + "f" * 5000)
@example("٣k")
@example("json:" + "[" * 5000)
@example('json:{"driver": 1' + "0" * 5000 + "}")
@example("a.b=1,a=2")
@example(".=")
@example("..=1,.=2")
@example("file.filename=x,driver=raw,size=" + "9" * 5000)
def test_text_of_any_kind(text: str) -> None:
    """Whatever is asked for, the answer is a typed refusal, or something that is understood."""
    understand(text.encode("utf-8", "surrogatepass"))


@given(st.binary())
def test_bytes_of_any_kind(data: bytes) -> None:
    understand(data)


_WORD = st.text(st.characters(exclude_characters="=", exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(
        st.tuples(_WORD.filter(lambda name: "\0" not in name and "," not in name), st.text()),
        min_size=1,
    )
)
def test_option_lists_are_split_as_they_were_joined(pairs: list[tuple[str, str]]) -> None:
    pairs = [(name, value.replace("\0", "")) for name, value in pairs]
    text = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in pairs)
    if all(not value.startswith(",") and not value.endswith(",") for _, value in pairs):
        assert split_pairs(text) == pairs


# Images described by options

_FILE_NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
_FILE = st.fixed_dictionaries({"driver": st.just("file"), "filename": _FILE_NAME})


def _images(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"driver": st.just("qcow2"), "file": _FILE}, optional={"backing": below | st.none()}
    )


_IMAGE = st.recursive(
    st.fixed_dictionaries({"driver": st.just("raw"), "file": _FILE}), _images, max_leaves=6
)


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = "" if value is None else value
    return found


def _describes(found: Any, node: dict[str, Any] | None) -> bool:
    if node is None:
        return found is None
    assert isinstance(found, Reference)
    same = found.source == node["file"]["filename"] and found.format == node["driver"]
    return same and (
        "backing" not in node or _describes(found.children["backing"], node["backing"])
    )


@given(_IMAGE)
def test_images_described_as_json(node: dict[str, Any]) -> None:
    assert _describes(reference(f"json:{json.dumps(node)}"), node)
    assert _describes(reference(f"json:{json.dumps(_flat(node))}"), node)


@given(_IMAGE)
def test_images_described_by_options(node: dict[str, Any]) -> None:
    flat = {name: value for name, value in _flat(node).items() if "," not in value}
    if len(flat) == len(_flat(node)):
        text = ",".join(f"{name}={value}" for name, value in flat.items())
        assert _describes(reference(text, image_opts=True), node)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    (
                        "driver",
                        "file",
                        "backing",
                        "filename",
                        "data-file",
                        "size",
                        "a.b",
                        "file.filename",
                        "backing.file",
                        "offset",
                        "read-only",
                        "",
                    )
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_json_of_any_shape(value: object) -> None:
    for writable in (False, True):
        with contextlib.suppress(ImageError):
            found = reference(f"json:{json.dumps(value)}", writable=writable)
            assert isinstance(found, (Reference, Settings))


# Names in images

_STORED = st.text(max_size=30) | st.builds(
    "".join,
    st.lists(
        st.sampled_from(
            ("nbd:", "json:", "file:", "//", "/", "..", "http", ":", "a", "C:", "\\", "{}", "fd:3")
        ),
        max_size=6,
    ),
)


@given(_STORED)
def test_recorded_names_are_read_as_they_were_meant(name: str) -> None:
    """What a user calls a file, recorded in an image, is taken for that file again, or refused."""
    try:
        path = file_path(name)
    except BadOption:
        return
    recorded = recorded_path(path)
    assert recorded in (path, f"./{path}")
    if not recorded.startswith(("file:", "json:")) and not has_protocol(recorded):
        assert file_path(recorded) == recorded
