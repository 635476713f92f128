"""A tool that is missing is never passed over in silence."""

from __future__ import annotations

import os

import pytest

from tests.kit.tools import find_tool, require_tool


def test_a_tool_is_found() -> None:
    assert os.access(require_tool("sh"), os.X_OK)


def test_an_administrators_tool_is_found_by_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    path = require_tool("mke2fs")
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_tool("mke2fs") == path


def test_a_missing_tool_skips_and_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("tests.kit.tools.PACKAGES", {"no-such-tool": "its-package"})
    with pytest.raises(pytest.skip.Exception, match=r"no-such-tool .* its-package"):
        require_tool("no-such-tool")


def test_a_missing_tool_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is not installed"):
        require_tool("no-such-tool")
