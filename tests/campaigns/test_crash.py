"""The crash campaign in its short form: states that a loss of power could leave, a few of each kind.

The long form is ``python -m tests.campaigns.crash``: see CONTRIBUTING.md.
"""

from __future__ import annotations

import time

import pytest

from tests.campaigns.crash.campaign import Tally, try_states
from tests.campaigns.crash.trial import find_barriers, try_one
from tests.kit.effort import effort
from tests.kit.tools import require_tool

#: States of each workload, in all and of one recording.
_STATES = 2700
_SHARE = 300


def _campaign(workload: str, states: int = _STATES) -> None:
    require_tool("qemu-img")
    tally, seed = Tally(), 1
    while tally.states < effort(states):
        tally.add(try_states(workload, seed, _SHARE, qemu_share=0.002, recovery_share=0.005))
        assert not tally.findings, str(tally.findings[0])
        seed += 1


class TestGuests:
    """What guests do to a disk."""

    @pytest.mark.parametrize(
        "workload", ["guest", "filling", "compressed", "external", "overlay", "raw"]
    )
    def test_writes(self, workload: str) -> None:
        _campaign(workload)


class TestLarge:
    """What takes longer for each state."""

    def test_large_clusters(self) -> None:
        _campaign("large-clusters", 600)

    def test_encryption(self) -> None:
        _campaign("encrypted", 300)
