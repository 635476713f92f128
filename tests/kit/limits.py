"""Running a piece of work in a process of its own, to see how long it takes and what memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar

MiB = 1 << 20

#: What SAFETY promises of any image, however it was made.
MEMORY = 256 * MiB
SECONDS = 2.0

#: Seconds of the clock after which a process is taken to hang, however busy the machine is.
_PATIENCE = 300

Result = TypeVar("Result")


class Cost(NamedTuple):
    """What a piece of work took: seconds of the processor, and bytes of memory at its peak."""

    seconds: float
    memory: int


def measure(work: Callable[[], Result], *, ceiling: int = 1 << 30) -> tuple[Result, Cost]:
    """Run ``work`` in a forked process and return its result with its cost.

    The process may take ``ceiling`` bytes of address space more than it begins with, so that what
    goes wrong does not take the machine with it. What ``work`` raises, fails the test, and so does
    work that waits for something for ever.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, sender, ceiling))
    process.start()
    sender.close()
    try:
        if not receiver.poll(_PATIENCE):
            process.kill()
            raise AssertionError(f"nothing came of it in {_PATIENCE} s")
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process died with code {process.exitcode}") from None
    finally:
        receiver.close()
    process.join()
    failure, result, cost = answer
    assert failure is None, failure
    return result, cost


def within_limits(
    work: Callable[[], Result], *, memory: int = MEMORY, seconds: float = SECONDS
) -> Result:
    """Run ``work`` in a process of its own; it may take no more than this memory and time."""
    result, cost = measure(work)
    assert cost.memory <= memory, f"took {cost.memory / MiB:.0f} MiB of memory"
    assert cost.seconds <= seconds, f"took {cost.seconds:.1f} s"
    return result


def _child(work: Callable[[], object], sender: Connection, ceiling: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_AS, (_status("VmSize") + ceiling, resource.getrlimit(resource.RLIMIT_AS)[1])
    )
    before, start = _status("VmRSS"), time.process_time()
    try:
        result = work()
    except BaseException:
        sender.send((traceback.format_exc(), None, None))
    else:
        cost = Cost(time.process_time() - start, _status("VmHWM") - before)
        sender.send((None, result, cost))
    finally:
        sender.close()
        os._exit(0)


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes. The high-water mark starts anew in a forked child."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise AssertionError(f"this system does not tell {field}")
