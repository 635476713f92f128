"""The entry point: finds the command's module, and turns every failure into one line.

Shell completion is click's own; for bash, put this into ~/.bashrc (zsh and fish likewise)::

    eval "$(_IMGTOOL_COMPLETE=bash_source imgtool)"
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn, cast

import click

from imgtool import __version__
from imgtool.cli import streams
from imgtool.cli.errors import ERRORS, complain, say

#: The commands and their help lines: `imgtool --help` imports none of them. Each lives in the
#: attribute ``command`` of the module imgtool.cli.<name>.
COMMANDS = {
    "amend": "Change the options of an image",
    "bench": "Time reads or writes of an image",
    "bitmap": "Change persistent dirty bitmaps",
    "check": "Check an image's integrity and repair it",
    "commit": "Put what an overlay holds into its backing image",
    "compact": "Give back what an image holds and does not need",
    "compare": "Check if two images have the same contents",
    "convert": "Copy images to another, converting the format",
    "create": "Create a new image",
    "dd": "Copy blocks of an image, converting the format",
    "hash": "Print a digest of what a disk holds, the same in every format",
    "info": "Show information about images",
    "inspect": "Say whether files from strangers are safe to hand on",
    "io": "Read, write and examine ranges of an image",
    "map": "Show where an image's data lies",
    "measure": "Calculate the file size that a new image needs",
    "rebase": "Put an overlay on another backing image",
    "resize": "Change the size of a disk",
    "snapshot": "List, take, apply or delete internal snapshots",
}

#: What a thread of ours needs at most, several times over; bytes.
_STACK = 1 << 20

#: Who asks again within so many seconds is not heard: the first request is being seen to.
_PATIENCE = 2.0

#: The signals that ask a command to end; Windows has not all of them.
_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class _Interrupted(Exception):
    """Ctrl-C, kept from click, which would print an empty line for it."""


class Commands(click.Group):
    """The group of all commands, which imports the one that is called."""

    #: The exit status of the one that is called if it fails, where none is said: its FAILED.
    failed = 1

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"imgtool.cli.{cmd_name}")
        self.failed = getattr(module, "FAILED", 1)
        return cast(click.Command, module.command)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"Command not found: {name}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"imgtool version {__version__}")
        ctx.exit()


@click.group(
    "imgtool",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.pass_context
def group(ctx: click.Context) -> None:
    """Create, convert, inspect and check virtual machine disk images."""
    if ctx.invoked_subcommand is None:
        ctx.fail("Not enough arguments")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (that of the process, by default) and return the exit status."""
    group.failed = Commands.failed
    try:
        result: Any = group.main(arguments, prog_name="imgtool", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "imgtool"
        say(path, error.format_message())
        click.echo(f"Try '{path} --help' for more info", err=True)
        return 1
    except click.ClickException as error:
        say("imgtool", error.format_message())
        return 1
    except BrokenPipeError:
        # Whoever read our output is gone. Nothing may be written to it at exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return group.failed
    except ERRORS as error:
        return complain(error, group.failed)
    except MemoryError:
        say("imgtool", "Out of memory")
        return group.failed
    except ImportError as error:
        # Mostly for lack of memory or of open files; numpy explains that at length.
        say("imgtool", f"A part of it can't be loaded: {str(error).strip().splitlines()[-1]}")
        return group.failed
    except (_Interrupted, KeyboardInterrupt, click.Abort):
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    """Say so; the exit status is what a shell gives a command that the signal has ended."""
    say("imgtool", "Interrupted")
    return 128 + (_number or signal.SIGINT)


def _prepare() -> None:
    """Let no output be lost unnoticed, and a request to end clean up as Ctrl-C does."""
    streams.prepare()
    for number in _ENDING:
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _interrupt)
    sys.unraisablehook = _unraisable
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    # Nothing here multiplies matrices: numpy need not start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Where address space is limited (ulimit -v) the stacks of some threads are a good part of it.
    with contextlib.suppress(ValueError, RuntimeError):
        threading.stack_size(_STACK)


_told = float("-inf")
_number = 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, but not while what this run has made is being removed."""
    global _told, _number
    if _in_finalizer(frame):
        # What is raised there is thrown away.
        _again_soon(number)
    elif time.monotonic() - _told > _PATIENCE:
        _told, _number = time.monotonic(), number
        raise KeyboardInterrupt


def _again_soon(number: int) -> None:
    threading.Timer(0.01, signal.raise_signal, (number,)).start()


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Have a request again that was thrown away: Python calls back where nothing can be raised.

    Those are what weak references call, for one: Python's own, of threads that have ended.
    """
    global _told
    if lost.exc_type is KeyboardInterrupt:
        _told = float("-inf")
        _again_soon(_number)
    else:
        sys.__unraisablehook__(lost)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _show_warning(message: Warning | str, *rest: object) -> None:
    say("imgtool", f"warning: {message}")


def main() -> NoReturn:
    """The console script."""
    global _told
    try:
        _prepare()
        status = run()
        # What there was to do has been done: to say anything else now would be wrong.
        _told = float("inf")
    except KeyboardInterrupt:
        status = _interrupted()
    # Python's own end is not to be interrupted.
    for number in _ENDING:
        with contextlib.suppress(ValueError):
            signal.signal(number, signal.SIG_IGN)
    # All is closed. Python's own end frees piece by piece what the system takes back at once, which
    # takes a sixth of the time of `info`; it complains of output once more that has been complained
    # of; and a thread that was being started as Ctrl-C came may wait for its start for ever.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
