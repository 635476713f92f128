"""The short form of :mod:`tests.campaigns.threads`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.threads import KINDS, SECTOR, SIZE, Hammer, History, hammer, stamped
from tests.campaigns.workshop import Wrong
from tests.kit.effort import effort


@pytest.mark.parametrize("kind", KINDS)
def test_reads_are_linear(kind: str, tmp_path: Path) -> None:
    done = hammer(KINDS[kind], tmp_path, threads=6, operations=effort(600), seed=1)
    assert done.counts["read"] > 100
    assert done.counts["write"] > 100


def test_the_checker_notices(tmp_path: Path) -> None:
    history = History(0)
    history.write(0, 8, False, lambda number: None)
    history.read(0, 8, lambda: stamped(1, 8))
    for stale in (stamped(0, 8), stamped(2, 8), stamped(1, 7) + stamped(0, 1)):
        with pytest.raises(Wrong):
            history.read(0, 8, lambda stale=stale: stale)  # type: ignore[misc]
    history.write(4, 5, True, lambda number: None)
    history.read(4, 5, lambda: stamped(0, 1))
    # While a write is under way both are right, but nothing goes back.
    history.write(0, 1, False, lambda number: history.read(0, 1, lambda: stamped(1, 1)))
    with pytest.raises(Wrong):
        history.write(
            1,
            2,
            False,
            lambda number: [history.read(1, 2, lambda n=n: stamped(n, 1)) for n in (number, 1)],  # type: ignore[misc]
        )


def test_a_lost_write_is_noticed(tmp_path: Path) -> None:
    class Losing(Hammer):
        def _do(self, chance: object, kind: str) -> None:
            self.counts["write"] = self.counts.get("write", 0) + 1
            if self.counts["write"] == 5:
                self.history.write(0, 1, False, lambda number: None)
            else:
                self._request("write", 1, SIZE // SECTOR)

    with pytest.raises(Wrong, match="sector 0 shows"):
        Losing(KINDS["64k"], tmp_path).run(1, 10)
