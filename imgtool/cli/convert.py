"""``imgtool convert``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy, Reference
from imgtool.cli.common import (
    Command,
    budget_options,
    cache_option,
    complete_format,
    force_share_option,
    image_opts_option,
    object_option,
    progress_options,
    quiet_option,
    rate_option,
    trust_options,
)
from imgtool.cli.errors import say, while_creating
from imgtool.cli.names import reference, snapshot_options
from imgtool.cli.numbers import number, option_of, size
from imgtool.cli.options import creation_options, print_help, wants_help
from imgtool.errors import BadOption
from imgtool.secrets import Secrets

_MAX_SPARSE_SIZE = 16 << 20
_MAX_WORKERS = 16
_worker_count = option_of(number, "number of coroutines", 1, _MAX_WORKERS)


def _sparse_size(_ctx: click.Context, _option: click.Parameter, value: str) -> int:
    length = size(value, "buffer size for sparse output")
    if length % 512 or length > _MAX_SPARSE_SIZE:
        raise BadOption(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up "
            f"to {_MAX_SPARSE_SIZE}. Select 0 to disable sparse detection (fully allocates output)."
        )
    return length


@click.command("convert", cls=Command)
@quiet_option()
@progress_options
@click.option(
    "-f",
    "--source-format",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the sources. [default: probed]",
)
@image_opts_option("--image-opts", "--source-image-opts")
@click.option(
    "-l",
    "--source-snapshot",
    "snapshot",
    metavar="SNAPSHOT",
    help="Convert this internal snapshot: snapshot.id=ID, snapshot.name=NAME, or either.",
)
@cache_option("-T", "--source-cache", name="source_cache", of="the sources")
@click.option(
    "-O",
    "--target-format",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the target. [default: raw]",
)
@click.option(
    "--target-image-opts", is_flag=True, help="TARGET is an image specification (needs -n)."
)
@click.option(
    "-o",
    "--target-options",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="Options of the target's format, NAME=VALUE[,...]; '-o help' lists them.",
)
@click.option("-c", "--compress", is_flag=True, help="Compress the target.")
@click.option(
    "--compression-level",
    type=click.IntRange(min=0),
    metavar="N",
    help="How hard to compress, as the compression type counts it.",
)
@cache_option("-t", "--target-cache", name="target_cache", default="unsafe", of="the target")
@click.option("-B", "--backing", metavar="FILENAME", help="Put the target on top of this image.")
@click.option(
    "-F",
    "--backing-format",
    metavar="FMT",
    shell_complete=complete_format,
    help="Format of the backing file.",
)
@click.option("-n", "--no-create", is_flag=True, help="Write into a target that exists.")
@click.option(
    "--target-is-zero", is_flag=True, help="The existing target reads as zeros (needs -n)."
)
@click.option(
    "-S",
    "--sparse-size",
    metavar="SIZE",
    callback=_sparse_size,
    default="4k",
    help="Shortest run of zeros that is left out; 0 writes everything. [default: 4k]",
)
@force_share_option()
@rate_option()
@click.option(
    "-m",
    "--parallel",
    metavar="N",
    callback=_worker_count,
    help="How many threads work, 1 to 16.",
)
@click.option("-C", "--copy-range-offloading", "offload", is_flag=True, help="Let the host copy.")
@click.option("--no-offload", is_flag=True, help="Copy even where the host can share blocks.")
@click.option("--salvage", is_flag=True, help="Read what can't be read as zeros, and go on.")
@click.option(
    "-W",
    "--oob-writes",
    is_flag=True,
    expose_value=False,
    help="Accepted for qemu-img's sake: writes need no order here.",
)
@click.option("--bitmaps", is_flag=True, help="Copy the persistent bitmaps as well.")
@click.option(
    "--skip-broken-bitmaps",
    is_flag=True,
    help="Leave out bitmaps that were not stored properly (needs --bitmaps).",
)
@click.option("--no-space-check", is_flag=True, help="Begin even if the disk seems too small.")
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="SOURCE... TARGET")
def command(
    quiet: bool,
    progress: str | None,
    source_format: str | None,
    image_opts: bool,
    snapshot: str | None,
    source_cache: str,
    target_format: str | None,
    target_image_opts: bool,
    options: tuple[str, ...],
    compress: bool,
    compression_level: int | None,
    target_cache: str,
    backing: str | None,
    backing_format: str | None,
    no_create: bool,
    target_is_zero: bool,
    sparse_size: int,
    force_share: bool,
    rate: int | None,
    parallel: int | None,
    offload: bool,
    no_offload: bool,
    salvage: bool,
    bitmaps: bool,
    skip_broken_bitmaps: bool,
    no_space_check: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Copy SOURCE, or several one behind the other, to TARGET in another format."""
    if wants_help(options):
        print_help(target_format or "raw", has_target=bool(filenames))
        return 0
    if not filenames:
        raise click.UsageError("Must specify image file name")
    if len(filenames) == 1:
        raise click.UsageError("Must specify target image file name")
    given = creation_options(options)
    _refuse_conflicts(click.get_current_context().params, given)
    if snapshot is not None and len(filenames) > 2:
        raise BadOption("No support for concatenating multiple snapshot")
    sources = [
        reference(name, format=source_format, image_opts=image_opts) for name in filenames[:-1]
    ]
    if snapshot is not None:
        wanted = snapshot_options(snapshot)
        sources = [replace(source, options={**source.options, **wanted}) for source in sources]
    target = _target(filenames[-1], target_format, target_image_opts)

    from imgtool.cli.progress import shown
    from imgtool.ops.convert import convert

    try:
        with shown(None if quiet else progress) as report:
            convert(
                sources,
                target,
                format=str(target.format),
                options=given,
                compress=compress,
                compression_level=compression_level,
                sparse_size=sparse_size,
                create=not no_create,
                target_is_zero=target_is_zero,
                backing=backing,
                backing_format=backing_format,
                workers=parallel,
                salvage=salvage,
                rate_limit=rate,
                share_blocks=not no_offload,
                copy_offload=offload,
                bitmaps=bitmaps,
                skip_broken_bitmaps=skip_broken_bitmaps,
                check_space=not no_space_check,
                opener=Opener(
                    secrets=secrets,
                    policy=policy,
                    budget=budget,
                    share=force_share,
                    cache=source_cache,
                ),
                target_cache=target_cache,
                progress=report,
                warn=lambda text: say("imgtool", f"warning: {text}"),
            )
    except OSError as error:
        if no_create or error.filename != target.source:
            raise
        raise while_creating(error, filenames[-1]) from error
    return 0


def _refuse_conflicts(chosen: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Refuse what qemu-img refuses to combine."""
    sparse_given = (
        click.get_current_context().get_parameter_source("sparse_size")
        is click.core.ParameterSource.COMMANDLINE
    )
    backed = chosen["backing"] or options.get("backing_file")
    backed_format = chosen["backing_format"] or options.get("backing_fmt")
    conflicts = {
        "--target-image-opts requires use of -n flag": (
            chosen["target_image_opts"] and not chosen["no_create"]
        ),
        "-o has no effect when skipping image creation": chosen["no_create"] and options,
        "--target-is-zero requires use of -n flag": (
            chosen["target_is_zero"] and not chosen["no_create"]
        ),
        "Cannot enable copy offloading when -S is used": chosen["offload"] and sparse_given,
        "Cannot use -C and --no-offload at the same time": (
            chosen["offload"] and chosen["no_offload"]
        ),
        "Cannot enable copy offloading when -c is used": chosen["offload"] and chosen["compress"],
        "Cannot use copy offloading in salvaging mode": chosen["offload"] and chosen["salvage"],
        "Compression and preallocation not supported at the same time": (
            chosen["compress"] and options.get("preallocation", "off") != "off"
        ),
        "Use of backing file requires explicit backing format": backed and not backed_format,
        "Backing format cannot be used without backing file": backed_format and not backed,
        "Use of --skip-broken-bitmaps requires --bitmaps": (
            chosen["skip_broken_bitmaps"] and not chosen["bitmaps"]
        ),
        "--compression-level requires use of -c flag": (
            chosen["compression_level"] is not None and not chosen["compress"]
        ),
    }
    for message, applies in conflicts.items():
        if applies:
            raise BadOption(message)


def _target(name: str, format: str | None, image_opts: bool) -> Reference:
    """The target; a plain name without -O is raw, but options must say what they describe."""
    target = reference(name, format=format, image_opts=image_opts, writable=True)
    if target.format is None:
        if image_opts or name.startswith("json:"):
            raise BadOption("The target's options name no driver, and it is not guessed")
        target = replace(target, format="raw")
    return target
