"""Numbers and sizes in options."""

from __future__ import annotations

import pytest

from imgtool.cli.numbers import number, parse_number, size
from imgtool.errors import BadOption


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("10", 10),
        ("+10", 10),
        (" 10", 10),
        ("-3", -3),
        ("010", 8),
        ("0x1F", 31),
        ("-0x10", -16),
        ("", None),
        ("x", None),
        ("09", None),
        ("1k", None),
        ("1.5", None),
        ("10 ", None),
        ("0x", None),
        ("1_0", None),
        ("٣", None),
    ],
)
def test_parse_number(text: str, value: int | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "1k", "1.5"])
def test_what_is_no_number_is_shown(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        number(text, "count")
    assert str(caught.value) == f"Invalid count specified: '{text}'."


@pytest.mark.parametrize("text", ["-1", "0", "11", "99999999999999999999", "9" * 5000])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        number(text, "count", 1, 10)
    assert str(caught.value) == "Invalid count specified. Must be between 1 and 10."
    assert number("10", "count", 1, 10) == 10


@pytest.mark.parametrize("text", ["-1", "-1k", "8E", "99999999999999999999", "2k", "9" * 5000])
def test_sizes_out_of_range(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        size(text, "bs", 1, 1024)
    assert str(caught.value) == "Invalid bs specified. Must be between 1 and 1024."


@pytest.mark.parametrize("text", ["", "x", "1x", "k", "1 k", "٣k", "++1"])
def test_what_is_no_size_is_shown(text: str) -> None:
    with pytest.raises(BadOption) as caught:
        size(text, "bs")
    assert str(caught.value) == f"Invalid bs specified: '{text}'."
    assert size("1.5k", "bs") == 1536
    assert size("+1k", "bs") == 1024
