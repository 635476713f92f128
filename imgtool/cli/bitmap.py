"""``imgtool bitmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy
from imgtool.cli.common import (
    Command,
    budget_options,
    byte_count,
    format_option,
    image_opts_option,
    object_option,
    output_option,
    trust_options,
)
from imgtool.cli.names import reference
from imgtool.secrets import Secrets

_ORDER = "imgtool.bitmap.actions"


def _action(name: str, help: str) -> Callable[[Any], Any]:
    """An option whose place among the others says when it is carried out."""

    def remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        actions: list[tuple[str, str]] = ctx.meta.setdefault(_ORDER, [])
        if isinstance(value, tuple):
            actions.extend((name, source) for source in value)
        elif value:
            actions.append((name, ""))
        return value

    kind: dict[str, Any] = {"is_flag": True}
    if name == "merge":
        kind = {"multiple": True, "metavar": "SOURCE"}
    return click.option(f"--{name}", callback=remember, expose_value=False, help=help, **kind)


@click.command("bitmap", cls=Command)
@_action("add", "Add BITMAP, and let it follow writes.")
@_action("remove", "Remove BITMAP.")
@_action("clear", "Make BITMAP all clean.")
@_action("enable", "Let BITMAP follow writes.")
@_action("disable", "Let BITMAP follow writes no longer.")
@_action("merge", "Mark what the bitmap SOURCE has marked (may be repeated).")
@click.option("--list", "list_ranges", is_flag=True, help="Print what BITMAP says is dirty.")
@click.option(
    "-g",
    "--granularity",
    metavar="SIZE",
    callback=byte_count,
    help="Bytes that go by one bit.",
)
@click.option("-b", "--source-file", metavar="FILENAME", help="Image that SOURCE is a bitmap of.")
@format_option("-F", "--source-format", name="source_format", help="Format of that image.")
@format_option()
@image_opts_option()
@output_option()
@object_option()
@trust_options
@budget_options
@click.argument("filename")
@click.argument("bitmap")
@click.pass_context
def command(
    ctx: click.Context,
    list_ranges: bool,
    granularity: int | None,
    source_file: str | None,
    source_format: str | None,
    format: str | None,
    image_opts: bool,
    output: str,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str,
    bitmap: str,
) -> int:
    """Change the persistent dirty bitmap BITMAP of the image FILENAME, or print it.

    Changes are made in the order in which they are given.
    """
    from imgtool.ops.bitmap import Action, Change, change_bitmap

    actions = [Action(Change(name), source) for name, source in ctx.meta.get(_ORDER, [])]
    named = [action.change for action in actions]
    if not actions and not list_ranges:
        raise click.UsageError(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
        )
    if granularity is not None and Change.ADD not in named:
        raise click.UsageError("granularity only supported with --add")
    if source_file is not None and Change.MERGE not in named:
        raise click.UsageError("Merge bitmap source file only supported with --merge")
    if source_format is not None and source_file is None:
        raise click.UsageError("-F only supported with -b")
    image = reference(filename, format=format, image_opts=image_opts)
    opener = Opener(policy=policy, secrets=secrets, budget=budget)
    if actions:
        source = None
        if source_file is not None:
            source = reference(source_file, format=source_format, image_opts=False)
        change_bitmap(image, bitmap, actions, granularity=granularity, source=source, opener=opener)
    if list_ranges:
        from imgtool.ops.bitmap import dirty_ranges

        _print(dirty_ranges(image, bitmap, opener=opener), output)
    return 0


def _print(ranges: Any, output: str) -> None:
    if output == "json":
        from imgtool.cli.render import to_json

        click.echo(to_json([{"start": offset, "length": length} for offset, length in ranges]))
        return
    for offset, length in ranges:
        click.echo(f"{offset:#x} {length:#x}")
