"""How much to try: little in CI, much with ``IMGTOOL_TESTS=long``."""

from __future__ import annotations

import os

PROFILE = os.environ.get("IMGTOOL_TESTS", "ci")
if PROFILE not in ("ci", "long"):
    raise ValueError(f"IMGTOOL_TESTS is '{PROFILE}': it must be ci or long")


def effort(usual: int) -> int:
    """How many examples to go through where ``usual`` are enough for CI."""
    return usual * 50 if PROFILE == "long" else usual
