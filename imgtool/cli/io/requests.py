"""The verbs of ``io`` that read and write."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Mapping

import click

from imgtool.cli.errors import complain
from imgtool.cli.io.figures import dump, report
from imgtool.cli.io.shell import Line, Refused, Session, WrongUsage, byte_number
from imgtool.cli.numbers import parse_number
from imgtool.errors import BadOption, ImageError, OutOfRange, UnsupportedFeature
from imgtool.ops import io

#: The most that one request may have without -n: qemu's limit, in whole sectors.
_LONGEST = (1 << 31) - 512
#: What is written if no pattern is given.
_FILLER = 0xCD
_SECTOR = 512


def _attempt(name: str, work: Callable[[], None]) -> float | None:
    """Do ``work`` and return how many seconds it took; None if it failed, which has been told."""
    code: int | None = errno.EIO
    started = time.perf_counter()
    try:
        work()
        return time.perf_counter() - started
    except OutOfRange:
        pass
    except UnsupportedFeature:
        code = errno.EOPNOTSUPP
    except BadOption:
        code = errno.EINVAL
    except ImageError as error:
        complain(error)
    except OSError as error:
        code = error.errno
    click.echo(f"{name} failed: {os.strerror(code or errno.EIO)}")
    return None


def _tell(line: Line, did: str, offset: int, length: int, seconds: float) -> None:
    if "q" not in line.options:
        click.echo(report(did, offset, length, seconds, machine="C" in line.options))


def _pattern_byte(text: str) -> int:
    value = parse_number(text)
    if value is None or not 0 <= value <= 255:
        raise Refused(f"{text} is not a valid pattern byte")
    return value


def _range(line: Line) -> tuple[int, int]:
    """The offset and the length that the arguments of a line say."""
    if len(line.arguments) != 2:
        raise WrongUsage
    offset, length = map(byte_number, line.arguments)
    if length > _LONGEST and "n" not in line.options:
        without = " without -n" if line.verb.name == "write" else ""
        raise Refused(f"length cannot exceed {_LONGEST}{without}, given {line.arguments[1]}")
    return offset, length


def _vector(line: Line) -> tuple[int, int]:
    """The offset that the arguments of a line say, and the sum of the lengths behind it."""
    if len(line.arguments) < 2:
        raise WrongUsage
    offset, *lengths = map(byte_number, line.arguments)
    for length, text in zip(lengths, line.arguments[1:], strict=True):
        if length > _LONGEST:
            raise Refused(f"Argument '{text}' exceeds maximum size {_LONGEST}")
    if sum(lengths) > _LONGEST:
        raise Refused(f"The total number of bytes exceed the maximum size {_LONGEST}")
    return offset, sum(lengths)


def _require_inside(session: Session, offset: int, length: int) -> None:
    """Refuse a request that would leave the disk before any piece of it is carried out."""
    if offset + length > session.disk.size:
        raise OutOfRange("The request leaves the disk", filename=session.disk.name)


def read(session: Session, line: Line) -> bool:
    offset, length = _range(line)
    if "P" not in line.options and ("s" in line.options or "l" in line.options):
        raise WrongUsage
    skip = byte_number(line.options.get("s", "0"))
    checked = byte_number(line.options["l"]) if "l" in line.options else length - skip
    if checked < 0 or skip + checked > length:
        raise Refused("pattern verification range exceeds end of read data")
    return _read_range(session, line, offset, length, (offset + skip, checked), "read")


def readv(session: Session, line: Line) -> bool:
    offset, length = _vector(line)
    return _read_range(session, line, offset, length, (offset, length), "readv")


def aio_read(session: Session, line: Line) -> bool:
    # The request has been made, and that is all that the status tells of.
    readv(session, line)
    return True


def _read_range(
    session: Session, line: Line, offset: int, length: int, checked: tuple[int, int], name: str
) -> bool:
    """Read for the figures, and again for what is to be checked and shown, in bounded memory."""
    pattern = _pattern_byte(line.options["P"]) if "P" in line.options else None
    good = True

    def work() -> None:
        _require_inside(session, offset, length)
        for _ in io.read(session.disk, offset, length):
            pass

    def look() -> None:
        nonlocal good
        if pattern is not None and not io.holds(session.disk, *checked, pattern):
            click.echo("Pattern verification failed at offset {}, {} bytes".format(*checked))
            good = False
        if "v" in line.options and "q" not in line.options:
            done = offset
            for piece in io.read(session.disk, offset, length):
                sys.stdout.writelines(f"{row}\n" for row in dump(done, bytes(piece)))
                done += len(piece)

    seconds = _attempt(name, work)
    if seconds is None or _attempt(name, look) is None:
        return False
    _tell(line, "read", offset, length, seconds)
    return good


def write(session: Session, line: Line) -> bool:
    session.require_writable()
    options = line.options
    if len(set(options) & set("zPs")) > 1:
        raise Refused("Only one of -z, -P, and -s can be specified at the same time")
    for letter in "un":
        if letter in options and "z" not in options:
            raise Refused(f"-{letter} requires -z to be specified")
    offset, length = _range(line)
    if "c" in options:
        for what, number in (("offset", offset), ("length", length)):
            if number % _SECTOR:
                raise Refused(f"{number} is not a sector-aligned value for '{what}'")
    return _write_range(session, line, offset, length, "write")


def writev(session: Session, line: Line) -> bool:
    session.require_writable()
    return _write_range(session, line, *_vector(line), "writev")


def aio_write(session: Session, line: Line) -> bool:
    session.require_writable()
    options = line.options
    if "z" in options and "P" in options:
        raise Refused("-z and -P cannot be specified at the same time")
    if "u" in options and "z" not in options:
        raise Refused("-u requires -z to be specified")
    if "z" in options and len(line.arguments) > 2:
        raise Refused("-z supports only a single length parameter")
    # As with aio_read, failures from here on do not count.
    _write_range(session, line, *_vector(line), "aio_write")
    return True


def _write_range(session: Session, line: Line, offset: int, length: int, name: str) -> bool:
    options, disk = line.options, session.disk
    pattern = _pattern_to_write(options, length)

    def work() -> None:
        _require_inside(session, offset, length)
        if "z" in options:
            disk.write_zeroes(offset, length, unmap="u" in options)
        elif "c" in options:
            io.write_compressed(disk, offset, length, pattern)
        else:
            io.write(disk, offset, length, pattern)
        if "f" in options:
            disk.flush()

    seconds = _attempt(name, work)
    if seconds is None:
        return False
    _tell(line, "wrote", offset, length, seconds)
    return True


def _pattern_to_write(options: Mapping[str, str], length: int) -> bytes:
    if "s" in options:
        with open(options["s"], "rb") as file:
            pattern = file.read(length)
        if not pattern:
            raise BadOption("file is empty", filename=options["s"])
        return pattern
    return bytes([_pattern_byte(options["P"]) if "P" in options else _FILLER])


def discard(session: Session, line: Line) -> bool:
    session.require_writable()
    offset, length = _range(line)
    seconds = _attempt("discard", lambda: session.disk.discard(offset, length))
    if seconds is None:
        return False
    _tell(line, "discard", offset, length, seconds)
    return True
