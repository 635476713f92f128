"""The short form of :mod:`tests.campaigns.kills`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.campaigns.kills import campaign
from tests.campaigns.scenarios import CHANGING

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize(("number", "times"), [("SIGKILL", 70), ("SIGINT", 30), ("SIGTERM", 10)])
def test_ended_at_random_moments(number: str, times: int, tmp_path: Path) -> None:
    # Every scenario is as likely as every other, and every subcommand that writes gets its share.
    tally = campaign(
        list(CHANGING.values())[:: 1 if times > 40 else 3],
        times,
        number=getattr(signal, number),
        folder=tmp_path,
    )
    assert not tally.failures, "\n".join(tally.failures)
    assert sum(tally.cases.values()) == times
