"""The short form of :mod:`tests.campaigns.races`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.campaigns.races import campaign

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's locks")


def test_exactly_one_wins(tmp_path: Path) -> None:
    tally = campaign(12, tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
    assert len(tally.cases) == 6
