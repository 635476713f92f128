"""What was measured, as a JSON file: each row is written when it has ended, the others stay."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.inputs import tool
from benchmarks.model import Measured

#: The packages whose versions matter for the figures.
_PACKAGES = ("imgtool", "numpy", "isal", "zstandard", "libqcow-python", "dissect.hypervisor")


class Results:
    """The file ``path``: rows by name, and the series of the scaling run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data: dict[str, Any] = {"rows": {}, "scaling": None}
        if path.exists():
            self._data.update(json.loads(path.read_text()))

    @property
    def rows(self) -> dict[str, Any]:
        """What was measured of each row."""
        rows: dict[str, Any] = self._data["rows"]
        return rows

    @property
    def scaling(self) -> dict[str, Any] | None:
        """The last scaling run."""
        scaling: dict[str, Any] | None = self._data["scaling"]
        return scaling

    def contender(self, row: str, name: str) -> Measured | None:
        """Return what a contender took in a row, or None if it did not take part."""
        found = self.rows.get(row, {}).get("contenders", {}).get(name)
        return None if found is None else Measured(**found)

    def put_row(self, name: str, scale: str, measured: dict[str, Measured]) -> None:
        """Record a row and save the file."""
        contenders = {who: asdict(what) for who, what in measured.items()}
        self.rows[name] = {"scale": scale, **_circumstances(), "contenders": contenders}
        self._save()

    def put_failure(self, name: str, scale: str, reason: str) -> None:
        """Record that a row could not be run: what was measured before does not hold any more."""
        self.rows[name] = {"scale": scale, **_circumstances(), "failure": reason, "contenders": {}}
        self._save()

    def failure(self, row: str) -> str | None:
        """Return why a row failed, or None if it did not."""
        reason: str | None = self.rows.get(row, {}).get("failure")
        return reason

    def put_scaling(self, series: list[dict[str, Any]]) -> None:
        """Record a scaling run and save the file."""
        self._data["scaling"] = {**_circumstances(), "series": series}
        self._save()

    def _save(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self._data, indent=1) + "\n")
        os.replace(partial, self.path)


def _circumstances() -> dict[str, Any]:
    return {"date": datetime.date.today().isoformat(), "environment": environment()}


def environment() -> dict[str, str]:
    """Describe the machine, and every program and package that takes part."""
    printed = subprocess.run([tool("qemu-img"), "--version"], capture_output=True, text=True)
    described = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}",
        "system": f"{platform.system()} {platform.release()}",
        "qemu-img": printed.stdout.splitlines()[0].removeprefix("qemu-img version "),
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            described[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            described[package] = "not installed"
    return described


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{pages * size / (1 << 30):.0f} GiB"
