"""``imgtool create``."""

from __future__ import annotations

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    complete_format,
    object_option,
    quiet_option,
    trust_options,
)
from imgtool.cli.errors import printable, while_creating
from imgtool.cli.options import creation_options, print_help, wants_help
from imgtool.secrets import Secrets


@click.command("create", cls=Command)
@quiet_option()
@click.option(
    "-f",
    "--format",
    "format",
    default="raw",
    metavar="FMT",
    shell_complete=complete_format,
    show_default=True,
)
@click.option(
    "-o",
    "--options",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="Options of the format, NAME=VALUE[,...]; '-o help' lists them.",
)
@click.option("-b", "--backing", metavar="FILENAME", help="Put the image on top of this one.")
@click.option(
    "-F",
    "--backing-format",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the backing file.",
)
@click.option("-u", "--backing-unsafe", is_flag=True, help="Do not look at the backing file.")
@object_option()
@trust_options
@budget_options
@click.argument("filename", required=False)
@click.argument("size", required=False)
def command(
    quiet: bool,
    format: str,
    options: tuple[str, ...],
    backing: str | None,
    backing_format: str | None,
    backing_unsafe: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str | None,
    size: str | None,
) -> int:
    """Create the image FILENAME of SIZE bytes (suffixes k, M, G, T, P and E).

    SIZE may be left out if there is a backing file, whose size is then taken. A backing file and
    a data file are named relative to the directory of the new image.
    """
    from imgtool.ops.create import execute, plan_create

    if wants_help(options):
        print_help(format, has_target=filename is not None)
        return 0
    if filename is None:
        raise click.UsageError("Expecting image file name")
    plan = plan_create(
        filename,
        size,
        format=format,
        backing_file=backing,
        backing_format=backing_format,
        unsafe=backing_unsafe,
        options=creation_options(options),
        opener=Opener(policy=policy, secrets=secrets, budget=budget),
    )
    if not quiet:
        told = "".join(f" {name}={value}" for name, value in plan.told())
        click.echo(printable(f"Formatting '{filename}', fmt={format}{told}"))
    try:
        execute(plan)
    except OSError as error:
        raise while_creating(error, filename) from error
    return 0
