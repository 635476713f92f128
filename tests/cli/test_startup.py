"""What commands import: start-up time is counted in modules, since seconds depend on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import imgtool

_HEAVY = {"numpy", "zstandard", "json", "concurrent.futures", "multiprocessing"}

#: What one command needs of Python's library beside what click and construct load.
_LIGHT = {"__future__", "array", "bisect", "fcntl"}
#: What click loads while it reads the command line.
_OF_CLICK = {"locale", "difflib", "heapq"}

_REPORT = """
import sys
{first}
before = set(sys.modules)
{body}
print("\\n".join(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


def _imported(body: str, first: str = "") -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _REPORT.format(body=body, first=first)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def _imported_by(*arguments: str, first: str = "") -> set[str]:
    body = f"from imgtool.cli.main import run\nassert run({list(arguments)!r}) == 0"
    return _imported(body, first)


def _beside_click_and_construct(*arguments: str) -> set[str]:
    imported = _imported_by(*arguments, first="import click, construct")
    return {name for name in imported if name.partition(".")[0] not in ("click", "construct")}


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


@pytest.mark.parametrize("output", ["human", "json"])
def test_info_imports_what_it_needs(image: str, output: str) -> None:
    imported = _beside_click_and_construct("info", "-f", "qcow2", f"--output={output}", image)
    ours = {name for name in imported if name.startswith("imgtool")}
    assert {name for name in imported - ours if name[0] != "_"} <= _LIGHT | _OF_CLICK
    # Neither another format nor what writes, unlocks, or follows names.
    assert not ours & {
        *("imgtool.formats.raw", "imgtool.formats.luks", "imgtool.schema.luks"),
        *("imgtool.formats.qcow2.writable", "imgtool.formats.qcow2.header_switch"),
        *("imgtool.codecs", "imgtool.storage.directory", "imgtool.api", "imgtool.findings"),
    }
    assert {name for name in ours if name.startswith("imgtool.crypto.")} <= {
        "imgtool.crypto.luks_options"
    }


def test_probing_imports_no_format_behind_the_one_that_it_is(image: str) -> None:
    assert "imgtool.formats.luks" not in _imported_by("info", image)


def test_create_imports_what_it_needs(tmp_path: Path) -> None:
    target = str(tmp_path / "a.qcow2")
    imported = _beside_click_and_construct("create", "-q", "-f", "qcow2", target, "1M")
    ours = {name for name in imported if name.startswith("imgtool")}
    assert {name for name in imported - ours if name[0] != "_"} <= _LIGHT | _OF_CLICK
    assert not ours & {
        *("imgtool.formats.raw", "imgtool.formats.luks", "imgtool.schema.luks"),
        *("imgtool.formats.qcow2.opening", "imgtool.codecs", "imgtool.storage.directory"),
    }


def test_create_imports_no_heavy_module(tmp_path: Path) -> None:
    raw = _imported_by("create", str(tmp_path / "a.raw"), "1M")
    assert not raw & {"construct", *_HEAVY}
    qcow2 = _imported_by("create", "-f", "qcow2", str(tmp_path / "a.qcow2"), "1M")
    assert not qcow2 & _HEAVY


def test_small_changes_do_without_numpy(image: str) -> None:
    for arguments in (("resize", "-q", image, "2M"), ("amend", "-o", "lazy_refcounts=on", image)):
        assert "numpy" not in _imported_by(*arguments)
