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

#: States of one recording.
_SHARE = 300

#: States of each workload: more where one takes less time.
_STATES = {
    "guest": 7000,
    "filling": 2000,
    "compressed": 3500,
    "external": 3500,
    "overlay": 2000,
    "snapshots": 2200,
    "bitmaps": 2500,
    "resize": 2500,
    "amend": 2000,
    "compact": 2200,
    "compact-into": 2000,
    "repair": 2200,
    "commit": 2200,
    "rebase": 1200,
    "create": 5000,
    "convert": 3000,
    "convert-into": 4000,
    "overwrite": 4500,
    "raw": 1500,
    "large-clusters": 300,
    "encrypted": 150,
}


def _campaign(workload: str) -> None:
    require_tool("qemu-img")
    states = effort(_STATES[workload])
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
    @pytest.mark.parametrize("workload", ["create", "convert", "convert-into", "overwrite", "raw"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestSnapshots:
    @pytest.mark.parametrize("workload", ["snapshots", "bitmaps"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestCommands:
    @pytest.mark.parametrize("workload", ["resize", "amend", "compact", "compact-into", "repair"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestChains:
    @pytest.mark.parametrize("workload", ["commit", "rebase"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


class TestSlow:
    @pytest.mark.parametrize("workload", ["large-clusters", "encrypted"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)


def test_no_workload_is_left_out() -> None:
    tried = {
        workload
        for group in (TestGuests, TestWhole, TestSnapshots, TestCommands, TestChains, TestSlow)
        for mark in group.test_every_state_is_whole.pytestmark  # type: ignore[attr-defined]
        for workload in mark.args[1]
    }
    assert tried == set(WORKLOADS)


class TestBarriers:
    def test_none_can_be_taken_away(self) -> None:
        """With any one barrier gone some state is wrong; so each is needed, and each is tested."""
        places = find_barriers(list(WORKLOADS), seed=0)
        trials = [try_one(barrier, where) for barrier, where in sorted(places.items())]
        assert len(trials) > 20
        assert [trial.barrier for trial in trials if not trial.caught] == []
