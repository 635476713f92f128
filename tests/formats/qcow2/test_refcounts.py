"""Refcount blocks of every width, one at a time and in bulk, against plain lists."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.formats.qcow2.refcount_block import RefcountBlock
from imgtool.formats.qcow2.refcounts import pack_block, runs, unpack_block
from tests.kit.effort import effort

ORDERS = range(7)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A width, as its order, and refcounts that fill a small block: few values, long runs."""
    order = draw(st.sampled_from(ORDERS))
    top = (1 << (1 << order)) - 1
    count = draw(st.sampled_from([16, 64, 128])) * 8 >> order
    values = st.sampled_from([0, 1, top, min(2, top), top >> 1, min(256, top)])
    parts = draw(st.lists(st.tuples(values, st.integers(1, 40)), max_size=12))
    refcounts = [value for value, length in parts for _ in range(length)][:count]
    return order, refcounts + [0] * (count - len(refcounts))


def packed(order: int, refcounts: list[int]) -> bytearray:
    """The specification's words: big-endian from 8 bits on, the lowest bits first below."""
    width = 1 << order
    if width >= 8:
        return bytearray(b"".join(value.to_bytes(width // 8, "big") for value in refcounts))
    data = bytearray(len(refcounts) * width // 8)
    for index, value in enumerate(refcounts):
        data[index * width // 8] |= value << index * width % 8
    return data


@settings(max_examples=effort(60))
@given(block=blocks())
def test_reading(block: tuple[int, list[int]]) -> None:
    order, refcounts = block
    data = packed(order, refcounts)
    found = RefcountBlock(data, order)
    assert len(found) == len(refcounts)
    assert [found[index] for index in range(len(found))] == refcounts
    assert unpack_block(data, order).tolist() == refcounts
    assert pack_block(unpack_block(data, order), order) == data


@settings(max_examples=effort(100))
@given(block=blocks(), data=st.data())
def test_changing(block: tuple[int, list[int]], data: st.DataObject) -> None:
    order, model = block
    changed = RefcountBlock(packed(order, model), order)
    top = (1 << (1 << order)) - 1
    for _ in range(data.draw(st.integers(1, 5))):
        first = data.draw(st.integers(0, len(model) - 1))
        count = data.draw(st.integers(0, len(model) - first))
        value = data.draw(st.integers(0, top))
        if data.draw(st.booleans()):
            changed.fill(first, count, value)
            model[first : first + count] = [value] * count
        else:
            changed[first] = value
            model[first] = value
        assert changed.data == packed(order, model)


@settings(max_examples=effort(100))
@given(block=blocks(), data=st.data())
def test_searching(block: tuple[int, list[int]], data: st.DataObject) -> None:
    order, model = block
    found = RefcountBlock(packed(order, model), order)
    for _ in range(5):
        first = data.draw(st.integers(0, len(model) - 1))
        wanted = data.draw(st.sampled_from([1, 2, 7, 9, 64, 10_000]))
        free = next((i for i in range(first, len(model)) if not model[i]), len(model))
        end = free
        while end < len(model) and end < free + wanted and not model[end]:
            end += 1
        assert found.free_run(first, wanted) == (free, end - free)

        count = data.draw(st.integers(1, len(model) - first))
        same = next(
            (i for i in range(count) if model[first + i] != model[first]),
            count,
        )
        assert found.alike(first, count) == same


@pytest.mark.parametrize("order", ORDERS)
def test_free_run_ends_with_the_block(order: int) -> None:
    block = RefcountBlock(bytearray(512), order)
    assert block.free_run(0, 1 << 20) == (0, len(block))
    assert block.free_run(5, 3) == (5, 3)
    block.fill(0, len(block), 1)
    assert block.free_run(0, 1) == (len(block), 0)
    block[len(block) - 1] = 0
    assert block.free_run(0, 9) == (len(block) - 1, 1)


@pytest.mark.parametrize("order", ORDERS)
def test_long_runs_are_seen_in_pieces(order: int) -> None:
    block = RefcountBlock(bytearray(1 << 16), order)
    block.fill(0, len(block), 1)
    assert 1 < block.alike(0, len(block)) <= len(block)
    assert block.alike(len(block) - 1, 1) == 1


@given(values=st.lists(st.integers(0, 60), unique=True).map(sorted))
def test_runs(values: list[int]) -> None:
    indexes: Any = np.array(values, dtype=np.uint64)
    found = list(runs(indexes))
    assert [index for first, count in found for index in range(first, first + count)] == values
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(found))
