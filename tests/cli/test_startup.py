"""What commands import: start-up time is counted in modules, since seconds depend on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import imgtool

_HEAVY = {"numpy", "zstandard", "json", "concurrent.futures", "multiprocessing"}

_REPORT = """
import sys
before = set(sys.modules)
{body}
print("\\n".join(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def _imported(body: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _REPORT.format(body=body)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def _imported_by(*arguments: str) -> set[str]:
    body = f"from imgtool.cli.main import run\nassert run({list(arguments)!r}) == 0"
    return _imported(body)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "a.qcow2")
    imgtool.create(path, "1M")
    return path


def test_the_package_imports_nothing() -> None:
    assert {name for name in _imported("import imgtool") if name != "__future__"} == {"imgtool"}


def test_help_imports_no_command_and_no_format() -> None:
    imported = _imported_by("--help")
    assert not imported & {"construct", "numpy", "json", "imgtool.cli.info", "imgtool.registry"}


@pytest.mark.parametrize("output", ["human", "json"])
def test_info_imports_no_heavy_module(image: str, output: str) -> None:
    imported = _imported_by("info", f"--output={output}", image)
    assert "imgtool.formats.qcow2.describe" in imported
    assert not imported & _HEAVY


def test_inspect_imports_no_heavy_module(image: str) -> None:
    imported = _imported_by("inspect", image)
    assert "imgtool.formats.qcow2.inspect" in imported
    assert not imported & _HEAVY


def test_create_imports_no_heavy_module(tmp_path: Path) -> None:
    raw = _imported_by("create", str(tmp_path / "a.raw"), "1M")
    assert not raw & {"construct", *_HEAVY}
    qcow2 = _imported_by("create", "-f", "qcow2", str(tmp_path / "a.qcow2"), "1M")
    assert not qcow2 & _HEAVY
