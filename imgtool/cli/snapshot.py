"""``imgtool snapshot``."""

from __future__ import annotations

import click

from imgtool.budget import Budget
from imgtool.chain import Opener
from imgtool.cli.common import (
    Command,
    budget_options,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
)
from imgtool.cli.names import reference
from imgtool.cli.render import snapshot_lines, to_json
from imgtool.errors import BadOption
from imgtool.secrets import Secrets


@click.command("snapshot", cls=Command)
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    help="Accepted for qemu-img's sake: nothing is printed but lists and errors.",
)
@format_option()
@image_opts_option()
@force_share_option()
@output_option()
@click.option("-l", "--list", "listed", is_flag=True, help="List the snapshots (the default).")
@click.option(
    "-c",
    "--create",
    metavar="NAME",
    multiple=True,
    help="Take a snapshot of the disk as it is.",
)
@click.option(
    "-a",
    "--apply",
    metavar="SNAPSHOT",
    multiple=True,
    help="Make the disk what it was then (an id or a name).",
)
@click.option("-d", "--delete", metavar="NAME", multiple=True, help="Delete a snapshot.")
@object_option()
@budget_options
@click.argument("filename", required=False)
def command(
    format: str | None,
    image_opts: bool,
    force_share: bool,
    output: str,
    listed: bool,
    create: tuple[str, ...],
    apply: tuple[str, ...],
    delete: tuple[str, ...],
    secrets: Secrets,
    budget: Budget,
    filename: str | None,
) -> int:
    """List, take, apply or delete the internal snapshots of the image FILENAME.

    Applying one loses what the disk holds now, unless it is in a snapshot as well.
    """
    from imgtool.ops import snapshot

    chosen = (*create, *apply, *delete)
    if len(chosen) + listed > 1:
        raise click.UsageError("Cannot mix '-l', '-a', '-c', '-d'")
    if filename is None:
        raise click.UsageError("Expecting one image file name")
    image = reference(filename, format=format, image_opts=image_opts, writable=bool(chosen))
    if chosen and force_share:
        raise BadOption("force-share=on can only be used with read-only images", filename=filename)
    opener = Opener(share=force_share, secrets=secrets, budget=budget)
    if create:
        snapshot.create_snapshot(image, *create, opener=opener)
    elif apply:
        snapshot.apply_snapshot(image, *apply, opener=opener)
    elif delete:
        snapshot.delete_snapshot(image, *delete, opener=opener)
    else:
        found = snapshot.list_snapshots(image, opener=opener)
        if output == "json":
            click.echo(to_json([one.to_dict() for one in found]))
        elif found:
            click.echo("Snapshot list:")
            for line in snapshot_lines(found):
                click.echo(line)
    return 0
