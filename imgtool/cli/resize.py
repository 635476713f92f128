"""``imgtool resize``."""

from __future__ import annotations

import re

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    format_option,
    image_opts_option,
    object_option,
    quiet_option,
    trust_options,
)
from imgtool.cli.names import reference
from imgtool.secrets import Secrets


class SizedCommand(Command):
    """A command whose last argument is a size, which may begin with a minus."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and re.match(r"-[\d.]", args[-1]) and "--" not in args:
            args = [*args[:-1], "--", args[-1]]
        return super().parse_args(ctx, args)


@click.command("resize", cls=SizedCommand)
@quiet_option()
@format_option()
@image_opts_option()
@click.option("--shrink", is_flag=True, help="Allow the disk to become smaller.")
@click.option(
    "--preallocation",
    metavar="MODE",
    default="off",
    help="What is done for the space added: off, metadata, falloc or full. [default: off]",
)
@object_option()
@trust_options
@budget_options
@click.argument("arguments", nargs=-1, metavar="FILENAME [+|-]SIZE")
def command(
    quiet: bool,
    format: str | None,
    image_opts: bool,
    shrink: bool,
    preallocation: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    arguments: tuple[str, ...],
) -> int:
    """Give the disk in FILENAME the size SIZE, or add (+) or take away (-) that much.

    SIZE is in bytes, or has a suffix k, M, G, T, P or E. What is added reads as zeros. The guest's
    partitions and file systems are not changed: shrink them first, or grow them afterwards.
    """
    from imgtool.ops.resize import resize

    if len(arguments) < 2:
        raise click.UsageError("Expecting image file name and size")
    if len(arguments) > 2:
        raise click.UsageError("Extra argument(s) in command line")
    filename, size = arguments
    resize(
        reference(filename, format=format, image_opts=image_opts, writable=True),
        size,
        shrink=shrink,
        preallocation=preallocation,
        opener=Opener(policy=policy, secrets=secrets, budget=budget),
    )
    if not quiet:
        click.echo("Image resized.")
    return 0
