"""The short form of :mod:`tests.campaigns.faults`: commands that only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.faults import sweep
from tests.campaigns.scenarios import READING
from tests.kit.effort import PROFILE


@pytest.mark.parametrize("name", READING)
def test_a_call_goes_wrong(name: str, tmp_path: Path) -> None:
    every = 4 if PROFILE == "ci" else 1
    tally = sweep([READING[name]], every=every, folder=tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
    assert sum(tally.cases.values()) > 5
