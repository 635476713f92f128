"""A small image, and the calls of the library whose budget is tried on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imgtool
from imgtool import Budget
from tests.kit.qcow2 import ImageBuilder

KiB, MiB = 1 << 10, 1 << 20


def plain(path: Path, size: int = MiB, **options: object) -> Path:
    builder = ImageBuilder(size, **options)  # type: ignore[arg-type]
    builder.data(0)
    path.write_bytes(builder.build())
    return path


CALLS: dict[str, Callable[[Path, Budget], object]] = {
    "open": lambda path, budget: imgtool.open(path, budget=budget).close(),
    "info": lambda path, budget: imgtool.info(path, budget=budget),
    "check": lambda path, budget: imgtool.check(path, budget=budget),
    "map": lambda path, budget: list(imgtool.map(path, budget=budget)),
    "convert": lambda path, budget: imgtool.convert(
        path, path.with_name("out"), format="raw", budget=budget
    ),
    "measure": lambda path, budget: imgtool.measure(path, format="qcow2", budget=budget),
    "hash": lambda path, budget: imgtool.hash(path, budget=budget),
    "compare": lambda path, budget: imgtool.compare(path, path, budget=budget),
    "snapshots": lambda path, budget: imgtool.snapshots(path, budget=budget),
}

#: Calls that change the image, a fresh one each time.
WRITING: dict[str, Callable[[Path, Budget], object]] = {
    "open to write": lambda path, budget: imgtool.open(path, writable=True, budget=budget).close(),
    "repair": lambda path, budget: imgtool.check(path, repair="all", budget=budget),
    "dry run": lambda path, budget: imgtool.check(path, repair="all", dry_run=True, budget=budget),
    "resize": lambda path, budget: imgtool.resize(path, MiB // 2, shrink=True, budget=budget),
    "amend": lambda path, budget: imgtool.amend(path, lazy_refcounts=True, budget=budget),
    "amend refcounts": lambda path, budget: imgtool.amend(path, refcount_bits=8, budget=budget),
    "compact": lambda path, budget: imgtool.compact(path, budget=budget),
    "compact into": lambda path, budget: imgtool.compact(
        path, path.with_name("out"), budget=budget
    ),
    "rebase": lambda path, budget: imgtool.rebase(path, None, budget=budget),
    "bitmap": lambda path, budget: imgtool.bitmap(path, "b", "add", budget=budget),
    "snapshot": lambda path, budget: imgtool.create_snapshot(path, "s", budget=budget),
}
