"""``imgtool compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    cache_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    progress_options,
    quiet_option,
    trust_options,
)
from imgtool.cli.errors import ERRORS, complain
from imgtool.cli.names import reference
from imgtool.secrets import Secrets

if TYPE_CHECKING:
    from imgtool.ops.compare import Comparison

_DIFFERENT, FAILED, _UNKNOWN_ALLOCATION, _UNREADABLE = 1, 2, 3, 4


@click.command("compare", cls=Command)
@quiet_option()
@progress_options
@format_option("-f", "--a-format", name="first_format", help="Format of FILENAME1.")
@format_option("-F", "--b-format", name="second_format", help="Format of FILENAME2.")
@image_opts_option()
@click.option("-s", "--strict", is_flag=True, help="Compare sizes and allocation as well.")
@cache_option(of="the images", status=FAILED)
@force_share_option()
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="FILENAME1 FILENAME2")
def command(
    quiet: bool,
    progress: str | None,
    first_format: str | None,
    second_format: str | None,
    image_opts: bool,
    strict: bool,
    cache: str,
    force_share: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Check if two images have the same contents, whatever their formats.

    If one disk is larger, the rest of it must be zeros. The exit status is 0 if the contents are
    the same, 1 if not, 2 if an image can't be opened, and 3 or 4 if what is allocated, or what is
    stored, can't be read.
    """
    from imgtool.cli.progress import shown
    from imgtool.ops.compare import UnknownAllocation, Unreadable, compare

    if len(filenames) != 2:
        raise click.UsageError("Expecting two image file names")
    formats = (first_format, second_format)
    try:
        first, second = (
            reference(name, format=chosen, image_opts=image_opts)
            for name, chosen in zip(filenames, formats, strict=True)
        )
        with shown(None if quiet else progress) as report:
            found = compare(
                first,
                second,
                strict=strict,
                opener=Opener(
                    policy=policy, share=force_share, cache=cache, secrets=secrets, budget=budget
                ),
                progress=report,
            )
    except UnknownAllocation as error:
        return complain(error, _UNKNOWN_ALLOCATION)
    except Unreadable as error:
        return complain(error, _UNREADABLE)
    except ERRORS as error:
        return complain(error, FAILED)
    if not quiet:
        _print(found)
    return 0 if found.identical else _DIFFERENT


def _print(found: Comparison) -> None:
    from imgtool.ops.compare import Difference

    if found.difference is Difference.SIZE:
        click.echo("Strict mode: Image size mismatch!")
    elif found.difference is Difference.ALLOCATION:
        click.echo(f"Strict mode: Offset {found.offset} block status mismatch!")
    else:
        # qemu-img speaks of the sizes once it gets to where one disk ends.
        common = min(found.sizes)
        if common != max(found.sizes) and (found.offset is None or found.offset >= common):
            click.echo("Warning: Image size mismatch!")
        if found.identical:
            click.echo("Images are identical.")
        else:
            click.echo(f"Content mismatch at offset {found.offset}!")
