"""``imgtool measure``."""

from __future__ import annotations

from dataclasses import replace

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    byte_count,
    complete_format,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    trust_options,
)
from imgtool.cli.names import reference, snapshot_options
from imgtool.cli.options import creation_options, print_help, wants_help
from imgtool.cli.render import to_json
from imgtool.errors import BadOption
from imgtool.secrets import Secrets


@click.command("measure", cls=Command)
@click.option(
    "-s",
    "--size",
    "image_size",
    metavar="SIZE",
    callback=byte_count,
    help="Measure for an empty disk of this size.",
)
@click.option(
    "-O",
    "--target-format",
    default="raw",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the new image.",
)
@click.option(
    "-o",
    "--options",
    multiple=True,
    metavar="OPTIONS",
    help="Options of that format, NAME=VALUE[,...]; '-o help' lists them.",
)
@format_option(help="Format of FILENAME.")
@image_opts_option()
@click.option(
    "-l",
    "--snapshot",
    metavar="SNAPSHOT",
    help="Measure for this internal snapshot: snapshot.id=ID, snapshot.name=NAME, or either.",
)
@force_share_option()
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filename", required=False)
def command(
    image_size: int | None,
    target_format: str,
    options: tuple[str, ...],
    format: str | None,
    image_opts: bool,
    snapshot: str | None,
    force_share: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str | None,
) -> int:
    """Calculate how large a new image's file will be, to hold what FILENAME holds.

    Two sizes are given: what it needs at once, and what it needs when everything is written to.
    """
    from imgtool.ops.measure import measure

    if wants_help(options):
        print_help(target_format, has_target=filename is not None)
        return 0
    if filename is None and (image_opts or format is not None or snapshot is not None):
        raise BadOption("--image-opts, -f, and -l require a filename argument.")
    if filename is None and image_size is None:
        raise BadOption("Either --size N or one filename must be specified.")
    if filename is not None and image_size is not None:
        raise BadOption("--size N cannot be used together with a filename.")
    source = None
    if filename is not None:
        source = reference(filename, format=format, image_opts=image_opts)
        if snapshot is not None:
            source = replace(source, options={**source.options, **snapshot_options(snapshot)})
    found = measure(
        source,
        size=image_size,
        format=target_format,
        options=creation_options(options),
        opener=Opener(policy=policy, share=force_share, secrets=secrets, budget=budget),
    )
    if output == "json":
        click.echo(to_json(found.to_dict()))
        return 0
    click.echo(f"required size: {found.required}")
    click.echo(f"fully allocated size: {found.fully_allocated}")
    if found.bitmaps is not None:
        click.echo(f"bitmaps size: {found.bitmaps}")
    return 0
