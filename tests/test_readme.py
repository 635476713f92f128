"""Every example in README.md works: the tour and the Python, in order, in one directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(\w+)( [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[tuple[str, str]]:
    """The code blocks of a page as ``(language, code)``; those with a word after it are others'."""
    return [
        (language, code)
        for language, word, code in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if not word and language in ("sh", "python")
    ]


def run_examples(page: Path, directory: Path) -> int:
    """Run a page's examples one after another in ``directory``; return how many there were."""
    commands = directory / "bin"
    commands.mkdir()
    launcher = commands / "imgtool"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m imgtool "$@"\n')
    launcher.chmod(0o755)
    (commands / "python3").symlink_to(sys.executable)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    environment.pop("IMGTOOL_TRUST", None)
    found = examples(page)
    for language, code in found:
        command = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        ran = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
    return len(found)


def test_readme(tmp_path: Path) -> None:
    assert run_examples(ROOT / "README.md", tmp_path) >= 7


def test_readme_holds_both_commands() -> None:
    words = [word.strip() for _, word, _ in _BLOCK.findall((ROOT / "README.md").read_text())]
    assert "install" in words
    assert "test" in words
