"""``imgtool inspect``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.common import SIZE, Command, force_share_option, output_option, quiet_option
from imgtool.cli.errors import ERRORS, complain, printable
from imgtool.cli.render import to_json
from imgtool.cli.streams import standard_input
from imgtool.units import format_size

if TYPE_CHECKING:
    from imgtool.inspection import Inspection

_CANNOT_INSPECT, _UNSAFE = 1, 2


@click.command("inspect", cls=Command)
@quiet_option()
@click.option(
    "-f", "--format", metavar="FMT", help="What FILENAME is said to be: any other format is unsafe."
)
@click.option(
    "--max-virtual-size", type=SIZE, metavar="SIZE", help="The largest disk that is allowed."
)
@click.option(
    "--accept",
    multiple=True,
    metavar="CODE",
    help="A problem that is not to count, such as backing-file (may be repeated).",
)
@force_share_option()
@output_option()
@click.argument("filenames", nargs=-1, metavar="FILENAME...")
def command(
    quiet: bool,
    format: str | None,
    max_virtual_size: int | None,
    accept: tuple[str, ...],
    force_share: bool,
    output: str,
    filenames: tuple[str, ...],
) -> int:
    """Say whether FILENAME, a file from a stranger, is safe to hand on.

    Only its structure is read, and no other file is opened. "-" is standard input, which need not
    be able to seek.

    The exit status is 0 if every file is safe, 2 if one is unsafe, and 1 if one could not be
    inspected. With several files, JSON is a list.
    """
    from imgtool.chain import Opener
    from imgtool.ops.inspect import inspect

    if not filenames:
        raise click.UsageError("Expecting one image file name")
    status = 0
    found = []
    for filename in filenames:
        try:
            found.append(
                inspect(
                    standard_input() if filename == "-" else filename,
                    format=format,
                    max_virtual_size=max_virtual_size,
                    accept=accept,
                    opener=Opener(share=force_share),
                )
            )
        except ERRORS as error:
            status = complain(error, _CANNOT_INSPECT)
    if not quiet:
        if output == "json":
            documents = [one.to_dict() for one in found]
            if len(filenames) > 1 or not documents:
                click.echo(to_json(documents))
            else:
                click.echo(to_json(documents[0]))
        elif found:
            click.echo("\n\n".join("\n".join(_lines(one)) for one in found))
    return status or (0 if all(one.safe for one in found) else _UNSAFE)


def _lines(found: Inspection) -> Iterator[str]:
    kind = found.format if found.variant is None else f"{found.format} ({found.variant})"
    yield f"image: {printable(found.filename)}"
    yield f"format: {printable(kind)}"
    others = [
        f"{claim.format} ({claim.place})"
        for claim in found.claims
        if claim.format != found.format or claim.place == "contents"
    ]
    if others:
        yield f"also claimed by: {', '.join(others)}"
    if found.virtual_size is not None:
        yield f"virtual size: {format_size(found.virtual_size)} ({found.virtual_size} bytes)"
    yield f"file size: {format_size(found.file_size)} ({found.file_size} bytes)"
    if found.contents:
        yield f"contents: {', '.join(found.contents)}"
    if found.features:
        yield f"features: {printable(', '.join(found.features))}"
    if found.encryption is not None:
        yield f"encryption: {printable(found.encryption)}"
    for name in found.names:
        recorded = "" if name.format is None else f" (format: {name.format})"
        yield printable(f"names {name.role}: {name.name}{recorded}")
    for problem in found.problems:
        where = "" if problem.offset is None else f" (at offset {problem.offset:#x})"
        times = "" if problem.count == 1 else f" ({problem.count} times)"
        yield printable(f"{problem.severity.value}: {problem.text}{where}{times} [{problem.code}]")
    for item in found.unchecked:
        where = "" if item.offset is None else f" (at offset {item.offset:#x})"
        yield printable(f"not checked: {item.what}{where}: {item.reason}")
    yield f"verdict: {found.verdict}"
