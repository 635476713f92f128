"""The table of the verbs of ``io``."""

from __future__ import annotations

import click

from imgtool.cli.io import inquiries, requests
from imgtool.cli.io.shell import ANY, Line, Refused, Session, Verb


def _help(session: Session, line: Line) -> bool:
    if not line.arguments:
        for verb in _VERBS:
            click.echo(verb.usage)
        click.echo("\nUse 'help VERB' for the options of one.")
        return True
    name = line.arguments[0]
    if name not in VERBS:
        raise Refused(f"command {name} not found")
    click.echo(VERBS[name].usage)
    for letter, text in VERBS[name].details.items():
        click.echo(f" -{letter}, -- {text}")
    return True


_FIGURES = {
    "C": "print the figures alone, between commas",
    "q": "print no figures",
}
_IGNORED = {"r": "ignored", "p": "ignored"}
_CHECKED = {"P": "check that every byte has this value", "v": "show the bytes"}
_WRITTEN = {"P": "write this value, in place of 0xcd", "f": "flush what was written"}
_ZEROED = {"z": "write zeros, without data where that is possible", "u": "with -z, unmap"}

_VERBS = (
    Verb("aio_flush", inquiries.aio_flush, "do nothing: requests are carried out at once"),
    Verb(
        "aio_read",
        requests.aio_read,
        "as readv, but the exit status tells nothing of it",
        "[-Cqrv] [-P pattern] off len [len..]",
        "CP:qrv",
        2,
        ANY,
        details={**_CHECKED, **_FIGURES, "r": "ignored"},
    ),
    Verb(
        "aio_write",
        requests.aio_write,
        "as writev, but the exit status tells nothing of it",
        "[-Cfqruz] [-P pattern] off len [len..]",
        "CfP:qruz",
        2,
        ANY,
        details={**_WRITTEN, **_ZEROED, **_FIGURES, "r": "ignored"},
    ),
    Verb(
        "alloc",
        inquiries.alloc,
        "count the bytes that the image itself has allocated",
        "offset [count]",
        least=1,
        most=2,
    ),
    Verb(
        "discard",
        requests.discard,
        "give the storage of a range back",
        "[-Cq] off len",
        "Cq",
        2,
        ANY,
        alias="d",
        details=_FIGURES,
    ),
    Verb("flush", inquiries.flush, "make everything written durable", alias="f"),
    Verb("help", _help, "tell about all verbs, or about one", "[verb]", most=1, alias="?"),
    Verb("length", inquiries.length, "print the disk's size", alias="l"),
    Verb("map", inquiries.map_, "list what the image itself has allocated"),
    Verb("quit", inquiries.leave, "leave out the lines that follow", alias="q"),
    Verb(
        "read",
        requests.read,
        "read a range",
        "[-Cqrv] [-P pattern [-s off] [-l len]] off len",
        "Cl:pP:qrs:v",
        2,
        ANY,
        alias="r",
        details={
            **_CHECKED,
            "s": "with -P, check from this byte of the range on",
            "l": "with -P, check only so many bytes",
            **_FIGURES,
            **_IGNORED,
        },
    ),
    Verb(
        "readv",
        requests.readv,
        "read a range that is given as several lengths",
        "[-Cqrv] [-P pattern] off len [len..]",
        "CP:qrv",
        2,
        ANY,
        details={**_CHECKED, **_FIGURES, "r": "ignored"},
    ),
    Verb(
        "truncate",
        inquiries.truncate,
        "set the disk's size",
        "[-m prealloc_mode] off",
        "m:",
        1,
        3,
        alias="t",
        details={"m": "what to do for new bytes: off, metadata, falloc, full"},
    ),
    Verb(
        "write",
        requests.write,
        "write a range",
        "[-cCfnqruz] [-P pattern | -s source_file] off len",
        "cCfnpP:qrs:uz",
        2,
        ANY,
        alias="w",
        details={
            **_WRITTEN,
            "s": "write the bytes of this file, over and over",
            "c": "write whole clusters, compressed",
            **_ZEROED,
            "n": "with -z, allow any length",
            **_FIGURES,
            **_IGNORED,
        },
    ),
    Verb(
        "writev",
        requests.writev,
        "write a range that is given as several lengths",
        "[-Cfqr] [-P pattern] off len [len..]",
        "CfP:qr",
        2,
        ANY,
        details={**_WRITTEN, **_FIGURES, "r": "ignored"},
    ),
)

#: Every verb, by its name and by its alias.
VERBS = {name: verb for verb in _VERBS for name in (verb.name, verb.alias) if name}
