"""The command: opens the image, and gives it line by line to the shell."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click

from imgtool import registry
from imgtool.budget import Budget
from imgtool.chain import Opener, OpenPolicy, Reference, storage_for
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
from imgtool.cli.io.shell import Session, carry_out
from imgtool.cli.io.verbs import VERBS
from imgtool.cli.names import reference
from imgtool.secrets import Secrets


@click.command("io", cls=Command)
@click.option("-c", "--cmd", "lines", multiple=True, metavar="LINE", help="Carry out this line.")
@format_option()
@image_opts_option()
@click.option("-r", "--read-only", is_flag=True, help="Write nothing.")
@click.option("-n", "--nocache", is_flag=True, help="The same as -t none.")
@cache_option("-t", "--cache")
@force_share_option()
@object_option()
@trust_options
@budget_options
@click.argument("filename", required=False)
def command(
    lines: tuple[str, ...],
    format: str | None,
    image_opts: bool,
    read_only: bool,
    nocache: bool,
    cache: str,
    force_share: bool,
    secrets: Secrets,
    policy: OpenPolicy,
    budget: Budget,
    filename: str | None,
) -> int:
    """Read, write and examine ranges of the image FILENAME.

    Each LINE is a verb with its arguments: 'write -P 5 1M 64k', 'read -v 0 512', 'map'. Without -c
    the lines are read from the terminal, or from stdin. 'imgtool io -c help' lists the verbs. All
    lines are carried out, whatever becomes of those before; the exit status is 1 if one failed.
    """
    opener = Opener(
        policy=policy,
        writable=not read_only,
        share=force_share,
        cache="none" if nocache else cache,
        secrets=secrets,
        budget=budget,
    )
    with contextlib.ExitStack() as stack:
        session = Session(None)
        if filename is not None:
            chosen = reference(filename, format=format, image_opts=image_opts)
            if not read_only and _is_guessed_raw(chosen, opener):
                session.guessed = True
                opener = replace(opener, writable=False)
            session.device = stack.enter_context(opener.reference(chosen))
        return 0 if _run(session, lines or _typed()) else 1


def _is_guessed_raw(chosen: Reference, opener: Opener) -> bool:
    if chosen.format is not None:
        return False
    with storage_for(chosen.source, replace(opener, writable=False)) as storage:
        return registry.probe(storage).name == "raw"


def _run(session: Session, lines: Iterable[str]) -> bool:
    good = True
    for line in lines:
        good = carry_out(session, VERBS, line) and good
        if session.done:
            break
    return good


def _typed() -> Iterator[str]:
    """The lines that come from stdin; a person at a terminal is prompted for them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() edit lines and remember them
    with contextlib.suppress(EOFError):
        while True:
            yield input("imgtool> ")
