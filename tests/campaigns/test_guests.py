"""The short form of :mod:`tests.campaigns.guests`: nothing flushed is lost, nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.guests import DISKS, sweep
from tests.kit.effort import PROFILE


@pytest.mark.parametrize("disk", DISKS)
def test_a_guest_goes_on(disk: str, tmp_path: Path) -> None:
    every = 1 if PROFILE == "long" else 8 if disk in ("raw", "luks", "64k") else 25
    tally = sweep(disk, tmp_path, every=every)
    assert not tally.failures, "\n".join(tally.failures)
    assert sum(tally.cases.values()) > 8
