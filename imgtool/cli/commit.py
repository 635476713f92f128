"""``imgtool commit``."""

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
    progress_options,
    quiet_option,
    rate_option,
    trust_options,
)
from imgtool.cli.names import reference
from imgtool.secrets import Secrets


@click.command("commit", cls=Command)
@quiet_option()
@progress_options
@format_option()
@image_opts_option()
@cache_option("-t", "--cache", of="the images")
@click.option(
    "-b",
    "--base",
    metavar="BASE",
    help="Commit into this image of the chain, and not only into the next (implies --drop).",
)
@click.option("-d", "--drop", is_flag=True, help="Do not empty FILENAME afterwards.")
@rate_option()
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
    base: str | None,
    drop: bool,
    rate: int | None,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Write what the overlay FILENAME holds into its backing image, and then empty FILENAME.

    Other images that lie on the same backing image are not to be used afterwards: they show
    something else than before.
    """
    from imgtool.cli.progress import shown
    from imgtool.ops.commit import commit

    if len(filenames) != 1:
        raise click.UsageError("Expecting one image file name")
    image = reference(filenames[0], format=format, image_opts=image_opts, writable=True)
    with shown(None if quiet else progress) as report:
        commit(
            image,
            base=base,
            drop=drop,
            rate_limit=rate,
            opener=Opener(policy=policy, cache=cache, secrets=secrets, budget=budget),
            progress=report,
        )
    if not quiet:
        click.echo("Image committed.")
    return 0
