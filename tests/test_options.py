"""Option tables and option lists."""

from __future__ import annotations

import pytest

from imgtool.errors import BadOption
from imgtool.options import Option, OptionTable, split_pairs

TABLE = OptionTable(
    (
        Option("size", "size", "How large"),
        Option("lazy", "bool (on/off)", "Whether", default="off"),
        Option("bits", "num", "How many", default=16),
        Option("mode", "str", "Which", choices=("off", "full")),
        Option("nocow", "bool (on/off)", "Of the file", of_file=True),
    )
)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1", [("a", "1")]),
        ("a=1,b=x=y", [("a", "1"), ("b", "x=y")]),
        ("a=x,,y,b=", [("a", "x,y"), ("b", "")]),
        ("a=,,,b=2", [("a", ","), ("b", "2")]),
        ("lazy,nolazy", [("lazy", "on"), ("lazy", "off")]),
        ("nocow", [("nocow", "on")]),
    ],
)
def test_split_pairs(text: str, pairs: list[tuple[str, str]]) -> None:
    assert split_pairs(text) == pairs


@pytest.mark.parametrize("text", ["", ",", "a=1,", ",a=1", "=1"])
def test_refused_lists(text: str) -> None:
    with pytest.raises(BadOption, match="Invalid option list"):
        split_pairs(text)


def test_check() -> None:
    given = {"size": "1k", "lazy": "yes", "bits": "0x10", "mode": "full", "nocow": None}
    assert TABLE.check(given) == {"size": 1024, "lazy": True, "bits": 16, "mode": "full"}
    assert TABLE.check({"size": 5, "lazy": False, "bits": 3}) == {
        "size": 5,
        "lazy": False,
        "bits": 3,
    }


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("bogus", "1", "Invalid parameter 'bogus'"),
        ("size", "1Q", "'size' expects a non-negative number"),
        ("size", -1, "'size' expects a non-negative number"),
        ("size", 1.5, "'size' expects a size"),
        ("size", True, "'size' expects a size"),
        ("size", "9" * 5000, "'size' expects a non-negative number"),
        ("size", f"1.{'9' * 5000}k", "'size' expects a non-negative number"),
        ("lazy", "maybe", "'lazy' expects 'on' or 'off'"),
        ("bits", "x", "'bits' expects a number"),
        ("bits", [], "'bits' expects a number"),
        ("bits", True, "'bits' expects a number"),
        ("bits", "9" * 5000, "'bits' expects a number"),
        ("mode", "half", "'mode' does not accept value 'half': choose one of off, full"),
        ("mode", 1, "'mode' expects a string"),
    ],
)
def test_refused_values(name: str, value: object, reason: str) -> None:
    with pytest.raises(BadOption, match=reason):
        TABLE.check({name: value})


def test_what_create_tells() -> None:
    told = list(TABLE.told({"bits": 8, "mode": "a,b", "nocow": True}))
    assert told == [("lazy", "off"), ("bits", "8"), ("mode", "a,,b"), ("nocow", "on")]


def test_help() -> None:
    lines = list(TABLE.help_lines())
    assert [line.split("=")[0].strip() for line in lines] == [
        "bits",
        "lazy",
        "mode",
        "nocow",
        "size",
    ]
    assert lines[2] == "  mode=<str>             - Which (allowed values: off, full)"
    assert len(list(TABLE.help_lines(of_file=False))) == 4
