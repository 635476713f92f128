"""``imgtool bench``."""

from __future__ import annotations

import errno
import os

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
    trust_options,
)
from imgtool.cli.names import reference
from imgtool.cli.numbers import MAX_COUNT, number, option_of, size
from imgtool.errors import BadOption, ImageError, OutOfRange
from imgtool.ops.bench import MAX_DEPTH, Load, bench
from imgtool.secrets import Secrets
from imgtool.units import MAX_SIZE

_DIRECT = ("none", "directsync")


def _aio(_ctx: click.Context, _option: click.Parameter, value: str) -> str:
    if value not in ("threads", "native", "io_uring"):
        raise BadOption(f"Invalid aio option: {value}")
    return value


@click.command("bench", cls=Command)
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    help="Accepted for qemu-img's sake: the figures are printed all the same.",
)
@format_option()
@image_opts_option()
@cache_option("-t", "--cache")
@click.option(
    "-c",
    "--count",
    metavar="COUNT",
    default="75000",
    callback=option_of(number, "request count", 1),
    help="How many requests. [default: 75000]",
)
@click.option(
    "-d",
    "--depth",
    metavar="DEPTH",
    default="64",
    callback=option_of(number, "queue depth", 1, MAX_DEPTH),
    help="How many requests at a time, each on a thread. [default: 64]",
)
@click.option(
    "-o",
    "--offset",
    metavar="OFFSET",
    default="0",
    callback=option_of(size, "offset", 0, MAX_SIZE),
    help="Where the first request is.",
)
@click.option(
    "-s",
    "--buffer-size",
    metavar="SIZE",
    default="4096",
    callback=option_of(size, "buffer size", 1, MAX_COUNT),
    help="Bytes of each request. [default: 4096]",
)
@click.option(
    "-S",
    "--step-size",
    metavar="SIZE",
    default="0",
    callback=option_of(size, "step size", 0, MAX_COUNT),
    help="Bytes from one request to the next. [default: those of a request]",
)
@click.option(
    "-i",
    "--aio",
    metavar="AIO",
    default="threads",
    callback=_aio,
    help="Accepted for qemu-img's sake (threads, native, io_uring): it is always threads.",
)
@click.option("-n", "--native", is_flag=True, help="The same as -i native.")
@click.option("-w", "--write", is_flag=True, help="Write, in place of reading.")
@click.option(
    "--pattern",
    metavar="BYTE",
    default="0",
    callback=option_of(number, "pattern byte", 0, 255),
    help="Write this value. [default: 0]",
)
@click.option(
    "--flush-interval",
    metavar="N",
    default="0",
    callback=option_of(number, "flush interval"),
    help="Flush after so many requests.",
)
@click.option("--no-drain", is_flag=True, help="Send on requests while a flush is under way.")
@force_share_option()
@object_option()
@trust_options
@budget_options
@click.argument("filenames", nargs=-1, metavar="FILENAME")
def command(
    format: str | None,
    image_opts: bool,
    cache: str,
    count: int,
    depth: int,
    offset: int,
    buffer_size: int,
    step_size: int,
    aio: str,
    native: bool,
    write: bool,
    pattern: int,
    flush_interval: int,
    no_drain: bool,
    force_share: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filenames: tuple[str, ...],
) -> int:
    """Time requests to the image FILENAME, one behind the other.

    With -w its contents are overwritten.
    """
    if len(filenames) != 1:
        raise click.UsageError("Expecting one image file name")
    if flush_interval and not write:
        raise BadOption("--flush-interval is only available in write tests")
    if 0 < flush_interval < depth:
        raise BadOption("Flush interval can't be smaller than depth")
    if (native or aio == "native") and cache not in _DIRECT:
        raise BadOption("aio=native needs -t none or -t directsync")
    load = Load(
        count=count,
        depth=depth,
        size=buffer_size,
        step=step_size or buffer_size,
        offset=offset,
        write=write,
        pattern=pattern,
        flush_interval=flush_interval,
        drain=not no_drain,
    )
    opener = Opener(
        policy=policy,
        writable=write,
        share=force_share,
        cache=cache,
        secrets=secrets,
        budget=budget,
    )
    image = reference(filenames[0], format=format, image_opts=image_opts, writable=write)
    with opener.reference(image) as device:
        click.echo(
            f"Sending {count} {'write' if write else 'read'} requests, {buffer_size} bytes each, "
            f"{depth} in parallel (starting at offset {offset}, step size {load.step})"
        )
        if flush_interval:
            click.echo(f"Sending flush every {flush_interval} requests")
        try:
            seconds = bench(device, load)
        except OutOfRange as error:
            raise ImageError(f"Failed request: {os.strerror(errno.EIO)}") from error
        except OSError as error:
            raise ImageError(f"Failed request: {error.strerror}") from error
    click.echo(f"Run completed in {seconds:3.3f} seconds.")
    return 0
