"""Judging names of files that an image stores, without looking at any file."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: As QEMU's own limit for backing files; no format has use for more.
MAX_NAME = 1023

#: As QEMU tells protocols from paths: a colon in front of the first slash.
_PROTOCOL = re.compile(r"[^:/\\]*:")
_DRIVE = re.compile(r"[A-Za-z]:([\\/]|$)")
_DEVICES = re.compile(r"/+(dev|proc|sys)(/|$)|[\\/]{2}[.?][\\/]", re.IGNORECASE)
_SHOWN = 80


def oddities(name: str) -> Iterator[tuple[str, str]]:
    """What is suspicious about a stored name, as ``(code, text)``; nothing for ``base.qcow2``.

    A name is suspicious unless it is that of a file in the image's own directory or below, on
    every system: ``C:\\x`` and ``..\\x`` are names in this directory for some, and not for others.
    """
    shown = shorten(name)
    if not name:
        yield "name-empty", "A name of a file is empty"
        return
    if len(name) > MAX_NAME:
        yield "name-long", f"A name of a file has {len(name)} characters"
    if not name.isprintable():
        yield "name-control", f"The name '{shown}' has characters that are not printable"
    plain = name
    if _DRIVE.match(name):
        yield "name-absolute", f"The name '{shown}' is an absolute path"
    elif _PROTOCOL.match(name):
        protocol, _, rest = name.partition(":")
        if protocol == "json":
            yield "name-json", "A name of a file is a json: description of what to open"
            return
        if protocol != "file" or rest.startswith("//"):
            yield "name-protocol", f"The name '{shown}' is not a plain path"
            return
        plain = rest
    if plain[:1] in ("/", "\\"):
        yield "name-absolute", f"The name '{shown}' is an absolute path"
    if ".." in re.split(r"[/\\]", plain):
        yield "name-outside", f"The name '{shown}' leads out of the image's directory"
    if _DEVICES.match(plain):
        yield "name-device", f"The name '{shown}' is that of a device"


def shorten(name: str) -> str:
    """A name as far as a message shows it."""
    return name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
