"""Commands that make files, or write over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.campaigns.scenarios.folders import (
    PASSWORD,
    SECRET,
    one,
    sources,
    sources_and_base,
    sources_and_target,
)
from tests.campaigns.scenarios.model import Image, Scenario


def new_files() -> Iterator[Scenario]:
    def nothing(folder: Path) -> None:
        return None

    made = (Image("new.qcow2", fate="made"),)
    for name, words in {
        "plain": (),
        "metadata": ("-o", "preallocation=metadata,cluster_size=4k"),
        "full": ("-o", "preallocation=full"),
        "data-file": ("-o", "data_file=new.data"),
    }.items():
        yield Scenario(
            f"create-{name}",
            nothing,
            ("create", "-q", "-f", "qcow2", *words, "new.qcow2", "1M"),
            made,
        )
    yield Scenario(
        "create-over", one("new.qcow2"), ("create", "-q", "-f", "qcow2", "new.qcow2", "2M"), made
    )
    yield Scenario(
        "create-on-base",
        one("base.qcow2"),
        ("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "new.qcow2"),
        (*made, Image("base.qcow2", fate="kept")),
    )
    yield Scenario(
        "create-raw",
        nothing,
        ("create", "-q", "-o", "preallocation=full", "new.raw", "1M"),
        (Image("new.raw", "raw", "made"),),
    )
    yield Scenario(
        "create-luks",
        nothing,
        (
            *("create", "-q", "-f", "luks", *SECRET),
            "-o",
            "key-secret=sec0,iter-time=10",
            "new.luks",
            "1M",
        ),
        (Image("new.luks", "luks", "made", PASSWORD, random=True),),
    )
    for name, target, words in (
        ("qcow2", "new.qcow2", ("-O", "qcow2")),
        ("compressed", "new.qcow2", ("-c", "-O", "qcow2")),
        ("durable", "new.qcow2", ("-O", "qcow2", "-t", "writeback")),
        ("raw", "new.raw", ("-O", "raw")),
        ("offload", "new.raw", ("-C", "-O", "raw")),
    ):
        image = Image(target, "raw" if target.endswith("raw") else "qcow2", "made")
        yield Scenario(
            f"convert-{name}", sources, ("convert", "-q", *words, "a.qcow2", target), (image,)
        )
    for name, target, form, options in (
        ("luks", "new.luks", "luks", "key-secret=sec0,iter-time=10"),
        (
            "encrypted",
            "new.qcow2",
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10",
        ),
    ):
        yield Scenario(
            f"convert-{name}",
            sources,
            ("convert", "-q", *SECRET, "-O", form, "-o", options, "a.qcow2", target),
            (Image(target, form, "made", PASSWORD),),
        )
    yield Scenario(
        "convert-on-base",
        sources_and_base,
        ("convert", "-q", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "a.qcow2", "new.qcow2"),
        made,
    )
    yield Scenario(
        "convert-over",
        sources_and_target("new.qcow2"),
        ("convert", "-q", "-O", "qcow2", "a.qcow2", "new.qcow2"),
        made,
    )
    yield Scenario(
        "convert-into",
        sources_and_target("old.qcow2", cluster_size=4096),
        ("convert", "-q", "-n", "-O", "qcow2", "a.qcow2", "old.qcow2"),
        (Image("old.qcow2"),),
    )
    yield Scenario(
        "convert-into-raw",
        sources_and_target("old.raw", format="raw"),
        ("convert", "-q", "-n", "-O", "raw", "a.qcow2", "old.raw"),
        (Image("old.raw", "raw"),),
    )
    yield Scenario(
        "dd",
        sources,
        ("dd", "-f", "raw", "-O", "qcow2", "bs=64k", "if=a.raw", "of=new.qcow2"),
        made,
    )
    yield Scenario(
        "dd-raw",
        sources,
        ("dd", "-f", "qcow2", "-O", "raw", "if=a.qcow2", "of=new.raw"),
        (Image("new.raw", "raw", "made"),),
    )
