"""Fixtures of the guest tests. Nothing large outlives the test that made it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.make_guest import TOOLS, Guest, make_guest
from tests.kit.tools import require_tool


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for a test's images, emptied at once: pytest keeps its own for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def module_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the images that the tests of a module share."""
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def guest(module_scratch: Path) -> Guest:
    """A raw guest disk with some hundred megabytes of files, which no test may change."""
    for tool in TOOLS:
        require_tool(tool)
    return make_guest(module_scratch / "guest.raw", size=1 << 30, content=320 << 20)
