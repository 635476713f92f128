"""The machine's own kernel package, which the guests boot."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.kit.tools import cannot_run


class Kernel(NamedTuple):
    """A kernel image and the folder of its modules."""

    image: Path
    modules: Path


def require_kernel() -> Kernel:
    """Return the newest of the machine's cloud kernels; without one the test cannot run."""
    kernels = [
        Kernel(image, Path("/lib/modules") / image.name.removeprefix("vmlinuz-"))
        for image in sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    ]
    kernels = [kernel for kernel in kernels if (kernel.modules / "modules.dep").exists()]
    if not kernels:
        cannot_run(
            "no kernel to boot (Debian package linux-image-cloud-amd64; .ci/apt-tools installs it)"
        )
    return kernels[-1]


def load_order(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """Return the files of the modules called ``names``, each after those that it needs.

    Modules that are built into the kernel are left out.
    """
    built_in = {module_name(line) for line in read_lines(kernel.modules / "modules.builtin")}
    needs = {}
    for line in read_lines(kernel.modules / "modules.dep"):
        path, _, others = line.partition(":")
        needs[module_name(path)] = [*reversed(others.split()), path]
    order: dict[str, None] = {}
    for name in names:
        if name not in built_in:
            order.update(dict.fromkeys(needs[name]))
    return [kernel.modules / path for path in order]


def read_lines(path: Path) -> list[str]:
    """Return the lines of one of the lists that lie beside the modules."""
    return path.read_text().splitlines()


def module_name(path: str) -> str:
    """Return the name by which the kernel knows the module in a file."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return a module as the kernel loads it."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
