"""The crash campaign in its short form: a part of the states that a loss of power could leave.

The long form is ``python -m tests.campaigns.crash``: see CONTRIBUTING.md. The classes are what
pytest-xdist hands out.
"""

from __future__ import annotations

import pytest

from imgtool.formats.qcow2.writable import WritableQcow2
from tests.campaigns.crash.campaign import Tally, record, try_states
from tests.campaigns.crash.trial import find_barriers, try_one
from tests.campaigns.crash.workloads import WORKLOADS
from tests.kit.effort import effort
from tests.kit.tools import require_tool

#: States of one recording.
_SHARE = 300

#: States of each workload: more where one takes less time.
_STATES = {
    "guest": 6000,
    "together": 2500,
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
    "create": 4000,
    "convert": 3000,
    "convert-into": 4000,
    "overwrite": 3500,
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


class TestThreads:
    @pytest.mark.parametrize("workload", ["together"])
    def test_every_state_is_whole(self, workload: str) -> None:
        _campaign(workload)

    def test_a_seed_has_the_same_turns_again(self) -> None:
        assert record("together", 3).log.changes == record("together", 3).log.changes

    def test_a_flush_beside_writers_is_missed_if_it_holds_no_lock(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(WritableQcow2, "_flush", lambda self: self.metadata.flush())
        assert any(try_states("together", seed, 100).findings for seed in range(20))


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


_GROUPS = (
    TestGuests,
    TestWhole,
    TestSnapshots,
    TestThreads,
    TestCommands,
    TestChains,
    TestSlow,
)


def test_no_workload_is_left_out() -> None:
    tried = {
        workload
        for group in _GROUPS
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
