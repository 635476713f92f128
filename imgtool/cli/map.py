"""``imgtool map``."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterable

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    byte_count,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    trust_options,
)
from imgtool.cli.errors import printable
from imgtool.cli.names import reference
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind
from imgtool.secrets import Secrets

#: What qemu-img prints where there is nothing to map.
_NOTHING = (
    '{{ "start": {}, "length": 0, "depth": 0, "present": false, "zero": false, "data": false, '
    '"compressed": false}}'
)

#: Lines that are written together.
_LINES = 256


@click.command("map", cls=Command)
@format_option()
@image_opts_option()
@click.option(
    "-s", "--start-offset", metavar="OFFSET", callback=byte_count, help="Begin at this offset."
)
@click.option("-l", "--max-length", metavar="LENGTH", callback=byte_count, help="Go no further.")
@force_share_option()
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filename", required=False)
def command(
    format: str | None,
    image_opts: bool,
    start_offset: int | None,
    max_length: int | None,
    force_share: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str | None,
) -> int:
    """Show which parts of the image FILENAME and its backing files hold data, and where.

    For people, only the ranges with data are listed; with --output json, everything is.
    """
    from imgtool.ops.map import mapping

    if filename is None:
        raise click.UsageError("Expecting one image file name")
    start = start_offset or 0
    with mapping(
        reference(filename, format=format, image_opts=image_opts),
        start_offset=start,
        max_length=max_length,
        opener=Opener(policy=policy, share=force_share, secrets=secrets, budget=budget),
    ) as extents:
        if output == "json":
            _print_json(extents, start)
        else:
            _print_table(extents)
    return 0


def _print_json(extents: Iterable[Extent], start: int) -> None:
    sys.stdout.write("[")
    lines = map(_json_line, extents)
    separator = ""
    while together := ",\n".join(itertools.islice(lines, _LINES)):
        sys.stdout.write(separator + together)
        separator = ",\n"
    if not separator:
        sys.stdout.write(_NOTHING.format(start))
    sys.stdout.write("]\n")


def _json_line(extent: Extent) -> str:
    what = _json_of_kind(extent.kind, extent.depth, extent.hole)
    host = "" if extent.host_offset is None else f', "offset": {extent.host_offset}'
    return f'{{ "start": {extent.offset}, "length": {extent.length}, {what}{host}}}'


@functools.lru_cache(maxsize=1024)
def _json_of_kind(kind: Kind, depth: int, hole: bool) -> str:
    """What is the same for all extents of a kind: there are millions of them."""
    from imgtool.cli.render import to_json
    from imgtool.ops.map import extent_dict

    values = extent_dict(Extent(0, 0, kind, depth=depth, hole=hole))
    return ", ".join(
        f'"{name}": {to_json(value)}'
        for name, value in values.items()
        if name not in ("start", "length")
    )


def _print_table(extents: Iterable[Extent]) -> None:
    sys.stdout.write(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")
    for extent in extents:
        if extent.reads_zero:
            continue
        if extent.kind is Kind.COMPRESSED or extent.file is None:
            raise ImageError("File contains external, encrypted or compressed clusters.")
        columns = (extent.offset, extent.length, extent.host_offset)
        figures = "".join(f"{hex(value) if value else '0':<16}" for value in columns)
        sys.stdout.write(f"{figures}{printable(extent.file)}\n")
