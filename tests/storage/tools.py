"""The real tools that tests hold imgtool against."""

from __future__ import annotations

import os
import shutil

import pytest


def require(tool: str) -> str:
    """Return the path of a tool. Without it the test is skipped, or fails where CI is set."""
    path = shutil.which(tool)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{tool} is not installed")
        pytest.skip(f"{tool} is not installed")
    return path
