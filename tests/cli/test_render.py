"""JSON in QEMU's layout."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from imgtool.cli.render import to_json


def test_layout() -> None:
    value: dict[str, object] = {
        "list": [1, {"a": True}],
        "empty": [],
        "none": {},
        "text": "ü",
        "nothing": None,
    }
    assert to_json(value) == (
        "{\n"
        '    "list": [\n'
        "        1,\n"
        "        {\n"
        '            "a": true\n'
        "        }\n"
        "    ],\n"
        '    "empty": [\n'
        "    ],\n"
        '    "none": {\n'
        "    },\n"
        '    "text": "\\u00FC",\n'
        '    "nothing": null\n'
        "}"
    )


def test_bytes_that_are_no_text() -> None:
    assert to_json("a\udcff\x7f\n") == '"a\\uFFFD\\u007F\\n"'


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_VALUES)
def test_it_is_json(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isascii()
