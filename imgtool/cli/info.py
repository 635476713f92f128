"""``imgtool info``."""

from __future__ import annotations

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    trust_options,
)
from imgtool.cli.errors import ERRORS, complain
from imgtool.cli.names import reference
from imgtool.cli.render import info_lines, to_json
from imgtool.secrets import Secrets


@click.command("info", cls=Command)
@format_option()
@image_opts_option()
@click.option("-b", "--backing-chain", is_flag=True, help="Show the backing files, too.")
@force_share_option()
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="FILENAME...")
def command(
    format: str | None,
    image_opts: bool,
    backing_chain: bool,
    force_share: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Show what the image FILENAME is: its format, its sizes, its snapshots.

    No file but FILENAME is opened, unless --backing-chain asks for those below it. With several
    images, JSON is a list with one element for each.
    """
    from imgtool.ops.info import info

    if not filenames:
        raise click.UsageError("Expecting one image file name")
    opener = Opener(policy=policy, share=force_share, secrets=secrets, budget=budget)
    status = 0
    found = []
    for filename in filenames:
        try:
            chosen = reference(filename, format=format, image_opts=image_opts)
            found.append(info(chosen, opener=opener, backing_chain=backing_chain))
        except ERRORS as error:
            status = complain(error)
    if output == "json":
        documents = [
            [image.to_dict() for image in (top, *top.backing_chain)]
            if backing_chain
            else top.to_dict()
            for top in found
        ]
        if len(filenames) > 1:
            click.echo(to_json(documents))
        elif documents:
            click.echo(to_json(documents[0]))
        return status
    blocks = ["\n".join(info_lines(image)) for top in found for image in (top, *top.backing_chain)]
    if blocks:
        click.echo("\n\n".join(blocks))
    return status
