"""The verbs of ``io`` that ask about the disk, or concern it as a whole."""

from __future__ import annotations

import sys

import click

from imgtool.cli.io.figures import amount
from imgtool.cli.io.shell import Line, Session, WrongUsage, byte_number
from imgtool.ops import io

#: What ``alloc`` asks about if nothing is said.
_SECTOR = 512


def length(session: Session, line: Line) -> bool:
    click.echo(amount(session.disk.size))
    return True


def alloc(session: Session, line: Line) -> bool:
    offset = byte_number(line.arguments[0])
    wanted = byte_number(line.arguments[1]) if len(line.arguments) > 1 else _SECTOR
    size = session.disk.size
    inside = max(0, min(wanted, size - offset))
    found = io.allocation(session.disk, min(offset, size), inside)
    allocated = sum(count for _, count, is_allocated in found if is_allocated)
    click.echo(f"{allocated}/{inside} bytes allocated at offset {amount(offset)}")
    return True


def map_(session: Session, line: Line) -> bool:
    for offset, count, allocated in io.allocation(session.disk):
        what = "    allocated" if allocated else "not allocated"
        sys.stdout.write(
            f"{amount(count)} ({count:#x}) bytes {what} at offset {amount(offset)} ({offset:#x})\n"
        )
    return True


def flush(session: Session, line: Line) -> bool:
    session.disk.flush()
    return True


def aio_flush(session: Session, line: Line) -> bool:
    return True  # nothing is ever outstanding


def truncate(session: Session, line: Line) -> bool:
    session.require_writable()
    if len(line.arguments) != 1:
        raise WrongUsage
    size = byte_number(line.arguments[0])
    session.disk.resize(size, preallocation=line.options.get("m", "off"))
    return True


def leave(session: Session, line: Line) -> bool:
    session.done = True
    return True
