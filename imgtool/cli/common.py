"""Options and types that commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgtool import registry
from imgtool.budget import Budget
from imgtool.chain import OpenPolicy, Trust
from imgtool.cli.errors import complain
from imgtool.cli.numbers import size
from imgtool.errors import BadOption
from imgtool.secrets import Secrets, parse_objects
from imgtool.units import parse_size

if TYPE_CHECKING:
    _SizeBase = click.ParamType[int]
else:
    _SizeBase = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])


CACHE_MODES = ("none", "writeback", "writethrough", "directsync", "unsafe")


class SizeType(_SizeBase):
    """A size in bytes, with qemu-img's suffixes; the parameter receives an int."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except BadOption as error:
            self.fail(error.reason, param, ctx)


SIZE = SizeType()


def byte_count(_ctx: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Parse the bytes that the parameter of ``option`` stands for, in qemu-img's words if wrong."""
    return None if value is None else size(value, str(option.name).replace("_", " "))


class Command(click.Command):
    """A command whose ``--progress`` may be followed by ``=FORMAT``, as an option of a flag's kind.

    (An option with an optional value would swallow the file name that follows ``-p``.)
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        last = args.index("--") if "--" in args else len(args)
        options = [
            f"--progress-as={argument.partition('=')[2]}"
            if argument.startswith("--progress=")
            else argument
            for argument in args[:last]
        ]
        return super().parse_args(ctx, options + args[last:])


def complete_format(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The names of formats that begin like this, for the shell's completion."""
    return [known.name for known in registry.formats() if known.name.startswith(incomplete)]


def format_option(
    *names: str, name: str = "format", help: str = "Image format."
) -> Callable[[F], F]:
    """``-f/--format FMT``, or other ``names``, as the parameter ``name``."""
    return click.option(
        *(names or ("-f", "--format")),
        name,
        metavar="FMT",
        shell_complete=complete_format,
        help=f"{help} [default: probed]",
    )


def image_opts_option(*names: str, name: str = "image_opts") -> Callable[[F], F]:
    """``--image-opts``: the image names are lists of options."""
    return click.option(
        *(names or ("--image-opts",)),
        name,
        is_flag=True,
        help="FILENAME is an image specification (driver=FMT,file.filename=NAME,...).",
    )


def object_option() -> Callable[[F], F]:
    """``--object OBJDEF``, as ``secrets``: the :class:`Secrets` that were defined."""
    return click.option(
        "--object",
        "secrets",
        multiple=True,
        metavar="OBJDEF",
        callback=_secrets,
        help="Define a secret: secret,id=ID,file=NAME or secret,id=ID,data=TEXT.",
    )


def _secrets(ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> Secrets:
    if "help" in values:
        click.echo("List of user creatable objects:\n  secret")
        ctx.exit()
    return parse_objects(values)


def force_share_option() -> Callable[[F], F]:
    """``-U/--force-share``, as ``force_share``."""
    return click.option(
        "-U",
        "--force-share",
        is_flag=True,
        help="Open images even if others, such as a running guest, write to them.",
    )


def cache_option(
    *names: str,
    name: str = "cache",
    default: str = "writeback",
    of: str = "the image",
    status: int = 1,
) -> Callable[[F], F]:
    """``-T/--cache MODE``, or other ``names``, as the parameter ``name``.

    ``status`` is what the command exits with if there is no such mode.
    """

    def known(ctx: click.Context, option: click.Parameter, mode: str) -> str:
        if mode not in CACHE_MODES:
            kind = "source cache" if "-T" in option.opts else "cache"
            complain(BadOption(f"Invalid {kind} option: {mode}"))
            ctx.exit(status)
        return mode

    return click.option(
        *(names or ("-T", "--cache")),
        name,
        callback=known,
        shell_complete=lambda _ctx, _option, incomplete: [
            mode for mode in CACHE_MODES if mode.startswith(incomplete)
        ],
        default=default,
        metavar="MODE",
        help=f"Cache mode of {of}: {', '.join(CACHE_MODES)}. [default: {default}]",
    )


def quiet_option() -> Callable[[F], F]:
    """``-q/--quiet``, as ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


def _rate(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    return None if value is None else size(value, "rate limit") or None


def rate_option() -> Callable[[F], F]:
    """``-r/--rate RATE``, as ``rate``: bytes a second, None for no limit."""
    return click.option("-r", "--rate", metavar="RATE", callback=_rate, help="Most bytes a second.")


def output_option() -> Callable[[F], F]:
    """``--output human|json``, as ``output``."""
    return click.option(
        "--output",
        type=click.Choice(("human", "json")),
        default="human",
        help="Print for people or for programs. [default: human]",
    )


def progress_options(function: F) -> F:
    """``-p/--progress[=json]``, as ``progress``: None, ``"human"`` or ``"json"``."""

    @functools.wraps(function)
    def wrapped(*args: Any, progress: bool, progress_as: str | None, **kwargs: Any) -> Any:
        chosen = progress_as or ("human" if progress else None)
        return function(*args, progress=chosen, **kwargs)

    return click.option(
        "-p",
        "--progress",
        is_flag=True,
        help="Show progress; --progress=json prints one JSON object a line on stderr.",
    )(click.option("--progress-as", type=click.Choice(("human", "json")), hidden=True)(wrapped))  # type: ignore[return-value]


def trust_options(function: F) -> F:
    """``--trust``, ``--untrusted`` and ``--allow-path``, as ``policy``: an :class:`OpenPolicy`."""

    @functools.wraps(function)
    def wrapped(
        *args: Any, trust: bool, untrusted: bool, allow_path: tuple[str, ...], **kwargs: Any
    ) -> Any:
        if trust and untrusted:
            raise click.UsageError("--trust and --untrusted exclude each other")
        policy = OpenPolicy.default()
        if trust:
            policy = OpenPolicy(Trust.ANY)
        elif untrusted:
            policy = OpenPolicy(Trust.NONE)
        if allow_path:
            policy = OpenPolicy(policy.trust, allow_path)
        return function(*args, policy=policy, **kwargs)

    decorate: list[Callable[[Any], Any]] = [
        click.option(
            "--allow-path",
            multiple=True,
            metavar="DIR",
            help="Let images name files inside DIR, too (may be repeated).",
        ),
        click.option(
            "--untrusted",
            is_flag=True,
            help="Open no file that an image names.",
        ),
        click.option(
            "--trust",
            is_flag=True,
            help="Open whatever file an image names. [default: only inside its own directory]",
        ),
    ]
    for option in decorate:
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def budget_options(function: F) -> F:
    """``--max-virtual-size``, ``--max-memory`` and ``--max-work``, as ``budget``."""

    @functools.wraps(function)
    def wrapped(
        *args: Any,
        max_virtual_size: int | None,
        max_memory: int | None,
        max_work: int | None,
        **kwargs: Any,
    ) -> Any:
        budget = Budget(max_virtual_size=max_virtual_size, max_memory=max_memory, max_work=max_work)
        return function(*args, budget=budget, **kwargs)

    decorate: list[Callable[[Any], Any]] = [
        click.option(
            "--max-work",
            metavar="STEPS",
            type=click.IntRange(min=0),
            help="Most extents, and KiB of tables, to go through because an image says so.",
        ),
        click.option(
            "--max-memory",
            metavar="SIZE",
            callback=byte_count,
            help="Most memory that may be taken because an image says so. [default: 192M]",
        ),
        click.option(
            "--max-virtual-size",
            metavar="SIZE",
            callback=byte_count,
            help="Refuse disks that are larger.",
        ),
    ]
    for option in decorate:
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]
