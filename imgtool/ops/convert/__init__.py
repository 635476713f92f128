"""``convert``: copy disks into a new image, or into one that exists."""

from imgtool.ops.convert.convert import convert

__all__ = ["convert"]
