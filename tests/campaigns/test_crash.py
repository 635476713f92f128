"""The crash campaign in its short form: a part of the states that a loss of power could leave.

The long form is ``python -m tests.campaigns.crash``: see CONTRIBUTING.md. The classes are what
pytest-xdist hands out.
"""

from __future__ import annotations

import pytest

from tests.campaigns.crash.campaign import Tally, try_states
from tests.campaigns.crash.trial import find_barriers, try_one
from tests.campaigns.crash.workloads import WORKLOADS
from tests.kit.effort import effort
from tests.kit.tools import require_tool

#: States of one recording, and of one workload in all.
_SHARE = 300
_STATES = 2900

#: Workloads whose images are large, or whose keys take long to derive.
_SLOW = {"large-clusters": 600, "encrypted": 200}

#: What a barrier is looked for in: recordings of each workload.
_SEEDS = 6


def _campaign(workload: str) -> None:
    require_tool("qemu-img")
    states = effort(_SLOW.get(workload, _STATES))
    tally, seed = Tally(), 1
    while tally.states < states:
        tally.add(try_states(workload, seed, _SHARE, qemu_share=0.002, recovery_share=0.004))
        assert not tally.findings, str(tally.findings[0])
        seed += 1


class TestGuests:
    @pytest.mark.parametrize("workload", ["guest", "filling", "compressed", "external", "overlay"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestWhole:
    @pytest.mark.parametrize("workload", ["create", "convert", "convert-into", "raw", "encrypted"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestSnapshots:
    @pytest.mark.parametrize("workload", ["snapshots", "bitmaps", "large-clusters"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestCommands:
    @pytest.mark.parametrize("workload", ["resize", "amend", "compact", "repair"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestChains:
    @pytest.mark.parametrize("workload", ["commit", "rebase"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestBarriers:
    def test_none_can_be_taken_away(self) -> None:
        """With any one barrier gone some state is wrong; so each is needed, and each is tested."""
        places = find_barriers(list(WORKLOADS), seed=0, seeds=_SEEDS)
        trials = [try_one(barrier, where) for barrier, where in sorted(places.items())]
        missed = [trial.barrier for trial in trials if not trial.caught]
        assert len(trials) > 20
        assert not missed
