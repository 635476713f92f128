"""``-o``: a format's options as they are typed, and their help."""

from __future__ import annotations

from collections.abc import Sequence

import click

from imgtool import registry
from imgtool.errors import BadOption, ImageError
from imgtool.options import split_pairs

_HELP = frozenset(("help", "?", "list"))


def creation_options(texts: Sequence[str]) -> dict[str, str]:
    """Return the options of one or more ``-o``; of repeated ones the last counts."""
    options: dict[str, str] = {}
    for text in texts:
        # qemu-img would take a comma at the end for the beginning of an escaped one.
        if text.endswith(",") and (len(text) - len(text.rstrip(","))) % 2:
            raise BadOption(f"Invalid option list: '{text}'")
        options.update(split_pairs(text))
    return options


def wants_help(texts: Sequence[str]) -> bool:
    """Whether ``-o help`` (or ``?``, or ``list``) was given, alone or among options."""
    return any(part in _HELP for text in texts for part in text.split(","))


def print_help(format: str, *, has_target: bool) -> None:
    """Print the options that new images of a format take, as ``-o help`` does."""
    table = registry.find(format).create_options
    click.echo("Supported options:" if has_target else f"Supported {format} options:")
    for line in table.help_lines(of_file=has_target):
        click.echo(line)
    if not has_target:
        click.echo()
        click.echo("The protocol level may support further options.")
        click.echo("Specify the target filename to include those options.")


def print_amend_help(format: str) -> None:
    """Print the options of a format that can be changed, as ``amend -o help`` does."""
    chosen = registry.find(format)
    if not chosen.amender:
        raise ImageError(f"Format driver '{format}' does not support option amendment")
    click.echo(f"Amend options for '{format}':")
    for line in chosen.amend_options.help_lines():
        click.echo(line)
