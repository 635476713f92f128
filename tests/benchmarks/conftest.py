"""The benchmarks on tiny inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.inputs import GIB, MIB, Inputs, Scale
from tests.kit.tools import cannot_run, require_tool

TINY = Scale(
    name="tiny",
    disk=16 * MIB,
    content=6 * MIB,
    small_disk=16 * MIB,
    small_content=6 * MIB,
    changed=4 * MIB,
    table=GIB,
    images=3,
    dense=4 * MIB,
    reads=100,
    batch=2,
    runs=1,
    warm_ups=0,
    settle=False,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Give inputs that are made in moments, with everything there that makes them."""
    for name in ("qemu-img", "qemu-io", "mke2fs", "sfdisk"):
        require_tool(name)
    if not Path(sys.prefix, "bin", "imgtool").exists():
        cannot_run("imgtool is not installed for this interpreter")
    return Inputs(tmp_path_factory.mktemp("inputs"), TINY)
