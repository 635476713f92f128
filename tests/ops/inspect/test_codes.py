"""Codes are for programs: each that can come up is documented, and no other."""

from __future__ import annotations

import re

from tests.ops.inspect.test_hostile import HOSTILE
from tests.test_readme import ROOT

_NOTED = re.compile(r'(?:notes|self)\.(unsafe|warn|note)\(\s*"([a-z0-9-]+)"')
_OTHERS = re.compile(r'(?:Problem\(\s*|yield )"([a-z0-9-]+)"')

#: The role of a file that is named is the code.
_ROLES = {"backing-file", "data-file", "extent", "parent"}


def _in_the_source() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"unsafe": set(_ROLES), "warn": set(), "note": set()}
    for folder in ("imgtool/inspection", "imgtool/ops/inspect", "imgtool/crypto", "formats"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for kind, code in _NOTED.findall(text):
                found[kind].add(code)
            if "inspect" in str(path):
                found["unsafe"] |= set(_OTHERS.findall(text))
    return found


def test_every_code_is_documented() -> None:
    page = (ROOT / "docs" / "inspect.md").read_text()
    table = page[page.index("## Codes") :]
    documented = set(re.findall(r"`([a-z0-9-]+)`", table))
    assert documented == set().union(*_in_the_source().values())


def test_every_unsafe_code_has_an_image() -> None:
    # Those that are left are tested by themselves.
    elsewhere = {
        "polyglot", "nested-format", "wrong-format", "virtual-size", "more", "names-many",
        "name-empty",
    }  # fmt: skip
    shown = set().union(*(expected for _, expected in HOSTILE.values()))
    assert _in_the_source()["unsafe"] - elsewhere - shown == set()
