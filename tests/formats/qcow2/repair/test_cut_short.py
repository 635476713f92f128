"""Repairs that are cut short: a second one mends what the first left."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Any

import pytest

from imgtool.formats.qcow2.repair import repair
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage
from tests.formats.qcow2.repair.damages import DAMAGES, built
from tests.formats.qcow2.repair.judging import judged, repaired, seen
from tests.kit.corrupt import put
from tests.kit.effort import effort
from tests.kit.faults import FailingStorage, WrappedStorage, nth
from tests.kit.views import assert_nothing_lost

_CUT_SHORT = [
    (name, damage)
    for name in ("v2", "512", "extended")
    for damage in ("much", "past-end-and-lost", "entry-to-l2", "entry-to-block", "table-lost")
]


@pytest.mark.parametrize(("name", "damage"), _CUT_SHORT)
@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_second_repair_mends_what_the_first_left(name: str, damage: str, kind: str) -> None:
    builder, image = built(name)
    damaged = DAMAGES[damage](builder, image)
    before = seen(damaged)
    for number in stops(damaged, kind):
        storage = MemoryStorage(damaged, "x.img")
        failing = FailingStorage(storage, nth(number, kind, number=errno.EIO, for_ever=True))
        with pytest.raises(OSError, match="Input/output"):
            repair(failing, "all")
        after, result = repaired(storage.getvalue())
        assert result.corruptions == 0
        assert_nothing_lost(before, seen(after))
        assert judged(after).corruptions == 0


def stops(damaged: bytes, kind: str) -> Iterator[int]:
    """The numbers of the calls of a kind that a repair makes, thinned out if they are many."""
    counting = FailingStorage(MemoryStorage(damaged, "x.img"), nth(-1, kind))
    repair(counting, "all")
    calls = counting.calls.get(kind, 0)
    yield from range(0, calls, max(1, calls // effort(12)))


class LossyStorage(WrappedStorage):
    """Keeps apart what was written since the last flush, as a power cut may lose it."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.states: list[tuple[bytes, list[tuple[int, bytes]]]] = []
        self._durable = inner.read_at(0, inner.size())
        self._waiting: list[tuple[int, bytes]] = []

    def write_at(self, offset: int, data: Any) -> None:
        self._waiting.append((offset, bytes(data)))
        super().write_at(offset, data)

    def flush(self) -> None:
        if self._waiting:
            self.states.append((self._durable, self._waiting))
        self._durable, self._waiting = self.inner.read_at(0, self.inner.size()), []
        super().flush()


@pytest.mark.parametrize(("name", "damage"), _CUT_SHORT)
def test_a_second_repair_mends_what_a_power_cut_left(name: str, damage: str) -> None:
    """Of what was not flushed anything may arrive: each write alone, all but one, or some."""
    builder, image = built(name)
    damaged = DAMAGES[damage](builder, image)
    before = seen(damaged)
    storage = LossyStorage(MemoryStorage(damaged, "x.img"))
    repair(storage, "all")
    assert storage.states
    chance = random.Random(5)
    for durable, writes in storage.states:
        choices = [[place] for place in range(len(writes))]
        choices += [[p for p in range(len(writes)) if p != lost] for lost in range(len(writes))]
        choices += [[p for p in range(len(writes)) if chance.random() < 0.5] for _ in range(3)]
        for choice in chance.sample(choices, min(len(choices), effort(4))):
            state = durable
            for place in choice:
                state = put(state, *writes[place])
            after, _ = repaired(state)
            assert_nothing_lost(before, seen(after))
            assert judged(after).corruptions == 0
