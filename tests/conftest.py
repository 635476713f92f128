"""Hypothesis profiles for all tests: ``IMGTOOL_TESTS=long`` is for campaigns of hours."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.kit.effort import PROFILE

settings.register_profile(
    "ci",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=5000)
settings.load_profile(PROFILE)

# Tests decide for themselves what an image may name.
os.environ.pop("IMGTOOL_TRUST", None)
