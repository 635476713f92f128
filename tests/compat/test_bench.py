"""``bench`` next to qemu-img's: its lines but for the figures, its refusals, what it writes."""

from __future__ import annotations

import re

import pytest

from tests.compat.twins import Outcome, Twins

_SECONDS = re.compile(r"Run completed in \d+\.\d{3} seconds\.")


def _plain(outcome: Outcome) -> Outcome:
    return outcome._replace(stdout=_SECONDS.sub("Run completed.", outcome.stdout))


@pytest.fixture
def prepared(twins: Twins) -> Twins:
    """A raw disk of 20 sectors, and one of qcow2."""
    twins.img("create", "-q", "s.raw", "10k")
    twins.img("create", "-q", "-f", "qcow2", "s.q", "1M")
    twins.io("-f", "qcow2", "-c", "write -P 9 0 1M", "s.q")
    return twins


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "100", "s.q"),
        ("-f", "raw", "-c", "2", "-s", "4096", "s.raw"),
        ("-f", "raw", "-c", "4", "-S", "5k", "-d", "1", "s.raw"),
        ("-f", "raw", "-c", "5", "-s", "10k", "s.raw"),
        ("-f", "raw", "-c", "50", "-S", "100k", "s.raw"),
        ("-f", "raw", "-c", "6", "-S", "11k", "-o", "512", "s.raw"),
        ("-f", "qcow2", "-c", "010", "-d", "3", "-s", "8k", "-S", "64k", "-o", "4k", "s.q"),
        ("-c", "7", "-s", "100", "-o", "100", "s.q"),
        ("-q", "-c", "7", "-t", "none", "-n", "s.q"),
        ("-c", "7", "-i", "threads", "-t", "unsafe", "-U", "s.q"),
        ("-c", "7", "--flush-interval", "0", "--no-drain", "--pattern", "5", "s.q"),
        ("--image-opts", "-c", "7", "driver=qcow2,file.filename=s.q"),
        ("-f", "raw", "-w", "-c", "7", "-s", "1000", "--pattern", "0x41", "s.raw"),
        ("-f", "qcow2", "-w", "-c", "100", "--flush-interval", "40", "-d", "10", "s.q"),
        ("-f", "qcow2", "-w", "-c", "9", "--flush-interval", "4", "-d", "4", "--no-drain", "s.q"),
        ("-f", "qcow2", "-w", "-c", "9", "--pattern", "65", "-S", "96k", "-o", "1k", "s.q"),
    ],
)
def test_runs(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = map(_plain, prepared.run("bench", *arguments))
    assert ours == theirs
    assert ours.status == 0
    if "-w" in arguments:
        for name in ("s.raw", "s.q"):
            left, right = (str(side / name) for side in (prepared.qemu, prepared.imgtool))
            prepared.img("compare", left, right)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("s.q", "s.q"),
        ("nope",),
        ("-f", "bogus", "s.q"),
        ("-f", "qcow2", "s.raw"),
        ("-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=s.q"),
        ("-c", "0", "s.q"),
        ("-c", "-1", "s.q"),
        ("-c", "1k", "s.q"),
        ("-c", "3000000000", "s.q"),
        ("-d", "0", "s.q"),
        ("-d", "x", "s.q"),
        ("-s", "0", "s.q"),
        ("-s", "x", "s.q"),
        ("-s", "3G", "s.q"),
        ("-S", "x", "s.q"),
        ("-S", "3G", "s.q"),
        ("-o", "-1", "s.q"),
        ("-o", "1M", "-c", "3", "s.q"),
        ("-o", "2M", "-c", "3", "s.q"),
        ("-s", "2M", "-c", "3", "s.q"),
        ("-f", "raw", "-s", "4096", "-c", "3", "s.raw"),
        ("-f", "raw", "-s", "4k", "-c", "50", "-S", "1k", "s.raw"),
        ("-i", "bogus", "s.q"),
        ("-i", "native", "s.q"),
        ("-n", "s.q"),
        ("-t", "bogus", "s.q"),
        ("--flush-interval", "100", "s.q"),
        ("-w", "--flush-interval", "5", "s.q"),
        ("-w", "--flush-interval", "-1", "s.q"),
        ("-w", "--flush-interval", "1k", "s.q"),
        ("-w", "--pattern", "256", "s.q"),
        ("-w", "--pattern", "x", "s.q"),
    ],
)
def test_refusals(prepared: Twins, arguments: tuple[str, ...]) -> None:
    theirs, ours = map(_plain, prepared.run("bench", *arguments))
    assert ours == theirs
    assert ours.status == 1
