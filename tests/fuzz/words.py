"""One execution: text from a command line, understood in every way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import click

from imgtool import registry
from imgtool.chain import has_protocol
from imgtool.cli.names import reference, snapshot_options
from imgtool.cli.numbers import parse_number
from imgtool.errors import ImageError
from imgtool.names import file_path, recorded_path
from imgtool.options import split_pairs
from imgtool.units import parse_size


def _options(text: str) -> None:
    pairs = dict(split_pairs(text))
    for known in registry.formats():
        for table in (known.create_options, known.open_options, known.amend_options):
            with contextlib.suppress(ImageError):
                table.check(pairs)


def _recorded(text: str) -> None:
    name = recorded_path(file_path(text))
    if has_protocol(name) and not name.startswith(("file:", "json:")):
        file_path(name)


UNDERSTOOD: dict[str, Callable[[str], object]] = {
    "size": parse_size,
    "number": parse_number,
    "options": _options,
    "name": reference,
    "json": lambda text: reference(f"json:{text}"),
    "image-opts": lambda text: reference(text, image_opts=True),
    "writable": lambda text: reference(text, image_opts=True, writable=True),
    "snapshot": snapshot_options,
    "recorded": _recorded,
}


def understand(data: bytes) -> None:
    """Take ``data`` for a size, an option list, a name and so on: a typed refusal at most."""
    text = data.decode("utf-8", "surrogateescape")
    for take in UNDERSTOOD.values():
        with contextlib.suppress(ImageError, click.UsageError):
            take(text)
