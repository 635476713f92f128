"""``imgtool dd``."""

from __future__ import annotations

from collections.abc import Callable

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy, Reference
from imgtool.cli.common import (
    Command,
    budget_options,
    complete_format,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    trust_options,
)
from imgtool.cli.errors import say, while_creating
from imgtool.cli.names import reference
from imgtool.cli.numbers import MAX_COUNT, number, size
from imgtool.errors import BadOption
from imgtool.names import file_path
from imgtool.secrets import Secrets
from imgtool.units import MAX_SIZE

_NUMBERS: dict[str, Callable[[str], int]] = {
    "bs": lambda text: size(text, "bs", 1, MAX_COUNT),
    "count": lambda text: number(text, "count", 0, MAX_SIZE),
    "skip": lambda text: number(text, "skip", 0, MAX_SIZE),
    "iseek": lambda text: number(text, "iseek", 0, MAX_SIZE),
    "isize": lambda text: size(text, "isize"),
}


@click.command("dd", cls=Command)
@format_option(help="Format of INPUT.")
@image_opts_option()
@click.option(
    "-O",
    "--output-format",
    metavar="FMT",
    shell_complete=complete_format,
    default="raw",
    help="Format of OUTPUT. [default: raw]",
)
@force_share_option()
@object_option()
@trust_options
@budget_options
@click.argument("operands", nargs=-1, metavar="if=INPUT of=OUTPUT [OPERAND...]")
def command(
    format: str | None,
    image_opts: bool,
    output_format: str,
    force_share: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    operands: tuple[str, ...],
) -> int:
    """Copy blocks of the image INPUT into a new image, OUTPUT.

    The operands are:

    \b
      bs=SIZE      bytes in a block [default: 512]
      count=N      copy up to the Nth block of INPUT [default: all]
      skip=N       leave out the first N of these blocks
      iseek=N      leave out N blocks before counting any
      isize=SIZE   take INPUT for no longer than SIZE bytes

    With skip, count includes the blocks that are left out, as it does in qemu-img; with iseek it
    does not, as in dd. Zeros are not written, and bs only says what a block is: the copy itself is
    made in large pieces.
    """
    from imgtool.ops.dd import dd

    names, numbers = _parse(operands)
    if "if" not in names or "of" not in names:
        raise BadOption("Must specify both input and output files")
    try:
        dd(
            reference(names["if"], format=format, image_opts=image_opts),
            Reference(file_path(names["of"])),
            format=output_format,
            block_size=numbers.pop("bs", 512),
            opener=Opener(policy=policy, share=force_share, secrets=secrets, budget=budget),
            warn=lambda text: say("imgtool", f"{names['if']}: {text}"),
            **numbers,
        )
    except OSError as error:
        if error.filename != file_path(names["of"]):
            raise
        raise while_creating(error, names["of"]) from error
    return 0


def _parse(operands: tuple[str, ...]) -> tuple[dict[str, str], dict[str, int]]:
    """The operands that are names, and those that are numbers; of repeated ones the last counts."""
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for operand in operands:
        name, _, value = operand.partition("=")
        if name in ("if", "of"):
            names[name] = value
        elif name in _NUMBERS:
            numbers[name] = _NUMBERS[name](value)
        else:
            raise BadOption(f"unrecognized operand {name}")
    return names, numbers
