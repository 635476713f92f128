"""``imgtool amend``."""

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
    trust_options,
)
from imgtool.cli.names import reference
from imgtool.cli.options import creation_options, print_amend_help, wants_help
from imgtool.secrets import Secrets


@click.command("amend", cls=Command)
@quiet_option()
@progress_options
@format_option()
@image_opts_option()
@cache_option("-t", "--cache", of="the image")
@click.option(
    "-o",
    "--options",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="What is to change, NAME=VALUE[,...]; '-o help' lists what can.",
)
@click.option(
    "--force", is_flag=True, help="Accepted for qemu-img's sake: it is for keys, which stay."
)
@object_option()
@trust_options
@budget_options
@click.argument("filename", required=False)
def command(
    quiet: bool,
    progress: str | None,
    format: str | None,
    image_opts: bool,
    cache: str,
    options: tuple[str, ...],
    force: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str | None,
) -> int:
    """Change the options of the image FILENAME."""
    from imgtool.cli.progress import shown
    from imgtool.ops.amend import amend

    if not options:
        raise click.UsageError("Must specify options (-o)")
    if wants_help(options):
        print_amend_help(_format_of(format, filename, policy, budget))
        return 0
    if filename is None:
        raise click.UsageError("Expecting one image file name")
    with shown(None if quiet else progress) as tell:
        amend(
            reference(filename, format=format, image_opts=image_opts),
            creation_options(options),
            opener=Opener(policy=policy, cache=cache, secrets=secrets, budget=budget),
            progress=tell,
        )
    return 0


def _format_of(format: str | None, filename: str | None, policy: OpenPolicy, budget: Budget) -> str:
    """The format whose options are asked for: the one given, else the image's."""
    if format is not None:
        return format
    if filename is None:
        raise click.UsageError("Expecting one image file name")
    opener = Opener(policy=policy, follow=False, budget=budget)
    with opener.reference(reference(filename, format=None, image_opts=False)) as device:
        return device.format
