"""``imgtool rebase``."""

from __future__ import annotations

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    cache_option,
    complete_format,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    progress_options,
    quiet_option,
    trust_options,
)
from imgtool.cli.errors import say
from imgtool.cli.names import reference
from imgtool.secrets import Secrets


@click.command("rebase", cls=Command)
@quiet_option()
@progress_options
@format_option()
@image_opts_option()
@cache_option("-t", "--cache", of="FILENAME")
@cache_option("-T", "--backing-cache", name="backing_cache", of="the new backing file")
@click.option(
    "-b",
    "--backing",
    metavar="BACKING",
    help='The new backing file, relative to the directory of FILENAME; "" for none.',
)
@click.option(
    "-F",
    "--backing-format",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the new backing file.",
)
@click.option(
    "-u",
    "--backing-unsafe",
    "unsafe",
    is_flag=True,
    help="Only change what is recorded: the new backing file must have the same contents.",
)
@click.option("-c", "--compress", is_flag=True, help="Compress what is copied into FILENAME.")
@force_share_option()
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
    backing_cache: str,
    backing: str | None,
    backing_format: str | None,
    unsafe: bool,
    compress: bool,
    force_share: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Put the overlay FILENAME on another backing file, with its contents unchanged.

    What the new backing file lacks is copied into FILENAME first. With -u nothing is copied and no
    backing file is opened: right for one that has only moved.
    """
    from imgtool.cli.progress import shown
    from imgtool.ops.rebase import rebase

    if len(filenames) != 1:
        raise click.UsageError("Expecting one image file name")
    if backing is None and not unsafe:
        raise click.UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    image = reference(filenames[0], format=format, image_opts=image_opts, writable=True)
    with shown(None if quiet else progress) as report:
        rebase(
            image,
            backing,
            backing_format,
            unsafe=unsafe,
            compress=compress,
            opener=Opener(
                policy=policy, share=force_share, cache=cache, secrets=secrets, budget=budget
            ),
            backing_cache=backing_cache,
            progress=report,
            warn=lambda text: say("imgtool", f"warning: {text}"),
        )
    return 0
