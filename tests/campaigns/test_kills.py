"""The short form of :mod:`tests.campaigns.kills`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from imgtool.cli.main import run
from tests.campaigns import kills
from tests.campaigns.kills import campaign, kill
from tests.campaigns.scenarios import CHANGING
from tests.campaigns.workshop import Workshop, Wrong

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_before_it_has_begun(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is nobody's fault, and what another has said counts for nothing."""
    workshop = Workshop(CHANGING["create-plain"], tmp_path / "a")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(kills, "imgtool", lambda: time.sleep(60))
    try:
        assert kill(workshop, 0.5, number) == "not begun"
        (workshop.place.parent / "err").write_text("imgtool: Interrupted\n")
        monkeypatch.setattr(os, "chdir", lambda place: time.sleep(60))
        assert kill(workshop, 0.5, number) == "not begun"
    finally:
        signal.signal(signal.SIGINT, before)


def test_ended_after_its_last_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(CHANGING["create-plain"], tmp_path / "a")

    def end_late(words: tuple[str, ...]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        run(words)
        time.sleep(1)
        sys.stderr.write("imgtool: Interrupted\n")
        sys.exit(128 + signal.SIGTERM)

    command = workshop.scenario.command
    monkeypatch.setattr(kills, "imgtool", lambda: end_late(command))
    assert kill(workshop, 0.5, signal.SIGTERM) == "ended, all done"
    # Half of it is still wrong.
    half = ("create", "-q", "-f", "qcow2", "new.qcow2", "2M")
    monkeypatch.setattr(kills, "imgtool", lambda: end_late(half))
    with pytest.raises(Wrong):
        kill(workshop, 0.5, signal.SIGTERM)
