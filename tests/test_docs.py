"""Every example on the pages under docs/ works, page by page in an empty directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_readme import ROOT, run_examples

PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path) -> None:
    run_examples(page, tmp_path)
