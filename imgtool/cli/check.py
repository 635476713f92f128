"""``imgtool check``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from imgtool.budget import Budget
from imgtool.chain import Opener
from imgtool.cli.common import (
    Command,
    budget_options,
    cache_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    quiet_option,
)
from imgtool.cli.errors import printable, say
from imgtool.cli.names import reference
from imgtool.cli.render import to_json
from imgtool.secrets import Secrets

if TYPE_CHECKING:
    from imgtool.ops.check import CheckReport

_CANNOT_CHECK, _CORRUPT, _LEAKING, _NO_CHECKS = 1, 2, 3, 63


@click.command("check", cls=Command)
@quiet_option()
@format_option()
@image_opts_option()
@cache_option()
@force_share_option()
@output_option()
@click.option(
    "-r",
    "--repair",
    type=click.Choice(("leaks", "all")),
    help="Repair leaked clusters, or all that is wrong.",
)
@click.option(
    "--dry-run", is_flag=True, help="With -r: say what would be repaired, and stop there."
)
@object_option()
@budget_options
@click.argument("filename", required=False)
def command(
    quiet: bool,
    format: str | None,
    image_opts: bool,
    cache: str,
    force_share: bool,
    output: str,
    repair: str | None,
    dry_run: bool,
    secrets: Secrets,
    budget: Budget,
    filename: str | None,
) -> int:
    """Check the metadata of the image FILENAME, and repair it with -r. No other file is read.

    What a guest could read before a repair reads the same afterwards. Without -r, and with
    --dry-run, nothing is changed.

    The exit status is 0 if nothing is wrong, 1 if the check could not be done, 2 if the image is
    corrupt, 3 if it only wastes space, and 63 if its format has nothing to check. After a repair
    it tells of what is left.
    """
    from imgtool.ops.check import NoChecks, check

    if filename is None:
        raise click.UsageError("Expecting one image file name")
    if dry_run and repair is None:
        raise click.UsageError("--dry-run goes with --repair")
    if force_share and repair is not None and not dry_run:
        raise click.UsageError("force-share=on can only be used with read-only images")
    chosen = reference(filename, format=format, image_opts=image_opts)
    try:
        found = check(
            chosen,
            opener=Opener(share=force_share, cache=cache, secrets=secrets, budget=budget),
            report=lambda text: click.echo(printable(text), err=True),
            repair=repair,
            dry_run=dry_run,
        )
    except NoChecks as error:
        say("imgtool", error.reason)
        return _NO_CHECKS
    if found.untold:
        say("imgtool", f"{found.untold} further findings are not listed")
    if not quiet:
        if output == "json":
            click.echo(to_json(replace(found, filename=filename).to_dict()))
        else:
            for line in (*_repaired(found, dry_run), *_lines(found)):
                click.echo(line)
    if found.check_errors:
        say("imgtool", "Check failed")
        return _CANNOT_CHECK
    if found.corruptions:
        return _CORRUPT
    return _LEAKING if found.leaks else 0


def _repaired(result: CheckReport, dry_run: bool) -> Iterator[str]:
    if not (result.leaks_fixed or result.corruptions_fixed):
        return
    done = "would be" if dry_run else "were found and"
    yield f"The following inconsistencies {done} repaired:\n"
    yield f"    {result.leaks_fixed} leaked clusters"
    yield f"    {result.corruptions_fixed} corruptions\n"
    if not dry_run:
        yield "Double checking the fixed image now..."


def _lines(result: CheckReport) -> Iterator[str]:
    if result.clean:
        yield "No errors were found on the image."
    if result.corruptions:
        yield f"\n{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield f"\n{result.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    if result.check_errors:
        yield f"\n{result.check_errors} internal errors have occurred during the check."
    total, allocated = result.total_clusters, result.allocated_clusters
    if total and allocated:
        yield (
            f"{allocated}/{total} = {allocated * 100 / total:.2f}% allocated, "
            f"{result.fragmented_clusters * 100 / allocated:.2f}% fragmented, "
            f"{result.compressed_clusters * 100 / allocated:.2f}% compressed clusters"
        )
    if result.image_end_offset:
        yield f"Image end offset: {result.image_end_offset}"
