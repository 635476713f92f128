"""``imgtool hash``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

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
    output_option,
    progress_options,
    trust_options,
)
from imgtool.cli.errors import ERRORS, complain, printable
from imgtool.cli.names import reference, snapshot_options
from imgtool.secrets import Secrets


@click.command("hash", cls=Command)
@progress_options
@click.option(
    "-a",
    "--algorithm",
    metavar="NAME",
    default="sha256",
    help="sha256, sha512 or blake2b; with --raw sha1 and md5 as well. [default: sha256]",
)
@click.option("--raw", is_flag=True, help="The plain digest of the disk's bytes, zeros and all.")
@format_option()
@image_opts_option()
@click.option(
    "-l",
    "--snapshot",
    metavar="SNAPSHOT",
    help="Hash this internal snapshot: snapshot.id=ID, snapshot.name=NAME, or either.",
)
@click.option(
    "-m", "--parallel", metavar="N", type=click.IntRange(1, 16), help="How many threads work."
)
@cache_option(of="the images")
@force_share_option()
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="FILENAME...")
def command(
    progress: str | None,
    algorithm: str,
    raw: bool,
    format: str | None,
    image_opts: bool,
    snapshot: str | None,
    parallel: int | None,
    cache: str,
    force_share: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Print a digest of what each disk FILENAME holds, the same in every format.

    Two disks of one size have the same digest if and only if a guest would see the same bytes,
    however they are stored. Zeros cost nothing. It is not the digest of any file: --raw gives that
    which sha256sum prints for the disk's raw file, and hashes every zero for it.
    """
    from imgtool.cli.progress import shown
    from imgtool.ops.hash import hash_image

    if not filenames:
        raise click.UsageError("Expecting at least one image file name")
    opener = Opener(policy=policy, share=force_share, cache=cache, secrets=secrets, budget=budget)
    chosen = {} if snapshot is None else snapshot_options(snapshot)
    status = 0
    documents: list[dict[str, Any]] = []
    for filename in filenames:
        try:
            image = reference(filename, format=format, image_opts=image_opts)
            image = replace(image, options={**image.options, **chosen})
            with shown(progress, stream=sys.stderr) as report:
                digest = hash_image(
                    image, algorithm, raw=raw, workers=parallel, opener=opener, progress=report
                )
        except ERRORS as error:
            status = complain(error)
            continue
        if output == "json":
            documents.append(
                {"filename": filename, "algorithm": algorithm, "raw": raw, "digest": digest}
            )
        else:
            click.echo(printable(f"{digest}  {filename}"))
    if output == "json" and documents:
        from imgtool.cli.render import to_json

        click.echo(to_json(documents if len(filenames) > 1 else documents[0]))
    return status
