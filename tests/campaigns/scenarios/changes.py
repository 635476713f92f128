"""Commands that change an image which is there."""

from __future__ import annotations

from collections.abc import Iterator

from tests.campaigns.scenarios.folders import (
    SIZE,
    chain_and_base,
    dirty,
    empty_spots,
    leaking,
    miscounted,
    one,
    overlay,
    with_bitmaps,
    with_snapshots,
)
from tests.campaigns.scenarios.model import Image, Scenario


def changes() -> Iterator[Scenario]:
    changed = (Image("a.qcow2"),)
    small = one(cluster_size=4096)
    yield Scenario("resize-grow", small, ("resize", "a.qcow2", "3M"), changed)
    yield Scenario("resize-grow-far", one(cluster_size=512), ("resize", "a.qcow2", "40M"), changed)
    yield Scenario(
        "resize-preallocate",
        small,
        ("resize", "--preallocation", "full", "a.qcow2", "1500k"),
        changed,
    )
    yield Scenario("resize-shrink", small, ("resize", "--shrink", "a.qcow2", "300k"), changed)
    yield Scenario(
        "resize-bitmaps", with_bitmaps(cluster_size=4096), ("resize", "a.qcow2", "3M"), changed
    )
    yield Scenario(
        "resize-raw",
        one("a.raw", format="raw"),
        ("resize", "-f", "raw", "--preallocation", "full", "a.raw", "1500k"),
        (Image("a.raw", "raw"),),
    )
    shared = with_snapshots(cluster_size=4096)
    yield Scenario("snapshot-first", small, ("snapshot", "-c", "s3", "a.qcow2"), changed)
    yield Scenario("snapshot-create", shared, ("snapshot", "-c", "s3", "a.qcow2"), changed)
    yield Scenario("snapshot-apply", shared, ("snapshot", "-a", "s1", "a.qcow2"), changed)
    yield Scenario("snapshot-delete", shared, ("snapshot", "-d", "s1", "a.qcow2"), changed)
    marked = with_bitmaps(cluster_size=4096)
    for name, words in {
        "add": ("--add", "a.qcow2", "three"),
        "remove": ("--remove", "a.qcow2", "one"),
        "clear": ("--clear", "a.qcow2", "one"),
        "disable": ("--disable", "a.qcow2", "one"),
        "merge": ("--merge", "two", "a.qcow2", "one"),
    }.items():
        yield Scenario(f"bitmap-{name}", marked, ("bitmap", *words), changed)
    yield Scenario(
        "commit",
        overlay(cluster_size=4096),
        ("commit", "-q", "a.qcow2"),
        (Image("a.qcow2", fate="kept"), Image("base.qcow2")),
    )
    yield Scenario(
        "commit-raw",
        overlay(base_format="raw", base_size=SIZE // 2),
        ("commit", "-q", "a.qcow2"),
        (Image("a.qcow2", fate="kept"), Image("base.raw", "raw")),
    )
    kept = (Image("a.qcow2", fate="kept"),)
    yield Scenario(
        "rebase", chain_and_base, ("rebase", "-b", "new.qcow2", "-F", "qcow2", "a.qcow2"), kept
    )
    yield Scenario("rebase-flatten", overlay(), ("rebase", "-b", "", "a.qcow2"), kept)
    yield Scenario(
        "rebase-unsafe",
        overlay(),
        ("rebase", "-u", "-b", "./base.qcow2", "-F", "qcow2", "a.qcow2"),
        kept,
    )
    for name, options, value in (
        ("downgrade", {"cluster_size": 4096}, "compat=0.10"),
        ("upgrade", {"compat": "0.10"}, "compat=1.1"),
        ("wider", {"cluster_size": 4096}, "refcount_bits=64"),
        ("lazy", {}, "lazy_refcounts=on"),
    ):
        yield Scenario(f"amend-{name}", one(**options), ("amend", "-o", value, "a.qcow2"), kept)
    broken = (Image("a.qcow2", fate="kept", broken=True),)
    yield Scenario("repair-leaks", leaking, ("check", "-q", "-r", "leaks", "a.qcow2"), broken)
    yield Scenario("repair-all", miscounted, ("check", "-q", "-r", "all", "a.qcow2"), broken)
    yield Scenario("repair-dirty", dirty, ("check", "-q", "-r", "all", "a.qcow2"), broken)
    yield Scenario("compact", empty_spots(cluster_size=4096), ("compact", "-q", "a.qcow2"), kept)
    yield Scenario(
        "compact-raw",
        one("a.raw", format="raw"),
        ("compact", "-q", "-f", "raw", "a.raw"),
        (Image("a.raw", "raw", "kept"),),
    )
    yield Scenario(
        "compact-into", empty_spots(), ("compact", "-q", "-o", "a.qcow2", "a.qcow2"), kept
    )
