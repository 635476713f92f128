"""Inspect: what a file is and what it names, and whether it is safe to hand on."""

from imgtool.ops.inspect.inspect import inspect
from imgtool.ops.inspect.stream import Inspector

__all__ = ["Inspector", "inspect"]
