"""The short form of :mod:`tests.campaigns.faults`: commands that change images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.faults import sweep
from tests.campaigns.scenarios import CHANGING
from tests.kit.effort import PROFILE


@pytest.mark.parametrize("part", range(8))
def test_a_call_goes_wrong(part: int, tmp_path: Path) -> None:
    scenarios = list(CHANGING.values())[part::8]
    tally = sweep(scenarios, every=40 if PROFILE == "ci" else 1, seed=part, folder=tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
    assert sum(tally.cases.values()) > 20
