"""Commands that only read."""

from __future__ import annotations

from collections.abc import Iterator

from tests.campaigns.scenarios.folders import (
    chain_and_base,
    one,
    overlay,
    sources,
    with_bitmaps,
    with_snapshots,
)
from tests.campaigns.scenarios.model import Scenario


def readers() -> Iterator[Scenario]:
    for name, build, words in (
        ("info", overlay(), ("info", "--backing-chain", "a.qcow2")),
        ("info-snapshots", with_snapshots(), ("info", "a.qcow2")),
        ("map", overlay(cluster_size=4096), ("map", "--output", "json", "a.qcow2")),
        ("check", with_snapshots(cluster_size=4096), ("check", "a.qcow2")),
        ("compare", sources, ("compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "a.raw")),
        ("compare-unlike", chain_and_base, ("compare", "a.qcow2", "new.qcow2")),
        ("hash", overlay(), ("hash", "a.qcow2")),
        ("hash-raw", one(cluster_size=4096), ("hash", "--raw", "a.qcow2")),
        ("measure", overlay(), ("measure", "-O", "qcow2", "a.qcow2")),
        ("snapshot-list", with_snapshots(), ("snapshot", "-l", "a.qcow2")),
        ("bitmap-list", with_bitmaps(), ("bitmap", "--list", "a.qcow2", "one")),
        (
            "read",
            overlay(cluster_size=4096),
            ("io", "-r", "-c", "read -q 0 1M", "-c", "map", "-f", "qcow2", "a.qcow2"),
        ),
    ):
        yield Scenario(name, build, words)
