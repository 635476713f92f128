"""``imgtool compact``."""

from __future__ import annotations

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    cache_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    progress_options,
    quiet_option,
    trust_options,
)
from imgtool.cli.errors import printable
from imgtool.cli.names import reference
from imgtool.cli.render import to_json
from imgtool.errors import BadOption
from imgtool.secrets import Secrets
from imgtool.units import format_size


@click.command("compact", cls=Command)
@quiet_option()
@progress_options
@format_option()
@image_opts_option()
@cache_option("-t", "--cache", of="FILENAME")
@click.option(
    "-o",
    "--into",
    metavar="NEW",
    help="Write a new image, which takes the place of NEW when it is whole. [default: in place]",
)
@click.option("-c", "--compress", is_flag=True, help="Compress the new image (needs -o).")
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="FILENAME")
def command(
    quiet: bool,
    progress: str | None,
    format: str | None,
    image_opts: bool,
    cache: str,
    into: str | None,
    compress: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Give the host back what FILENAME holds that is zeros, unused or lost. Contents stay.

    In place every step leaves a whole image behind, so it may be interrupted at any time. A new
    image has the same properties and lies closer together; NEW may be FILENAME itself.
    """
    from imgtool.cli.progress import shown
    from imgtool.ops.compact import compact, compact_into

    if len(filenames) != 1:
        raise click.UsageError("Expecting one image file name")
    if compress and into is None:
        raise BadOption("-c requires use of -o: in place nothing is compressed")
    image = reference(filenames[0], format=format, image_opts=image_opts, writable=into is None)
    opener = Opener(policy=policy, cache=cache, secrets=secrets, budget=budget)
    with shown(None if quiet else progress) as report:
        if into is None:
            found = compact(image, opener=opener, progress=report)
        else:
            found = compact_into(
                image, into, compress=compress or None, opener=opener, progress=report
            )
    if output == "json":
        click.echo(to_json({"filename": into or filenames[0], **found.to_dict()}))
    elif not quiet:
        before, after = found.before, found.after
        click.echo(
            f"{printable(into or filenames[0])}: {format_size(after.stored)} on the host, was "
            f"{format_size(before.stored)}; file length {format_size(after.length)}, was "
            f"{format_size(before.length)}"
        )
    return 0
