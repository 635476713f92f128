"""Killing: every command that writes is ended at random moments, and what it leaves is judged.

    python -m tests.campaigns.kills --kills 1000                  SIGKILL
    python -m tests.campaigns.kills --kills 300 --signal INT      Ctrl-C; TERM and HUP likewise

After SIGKILL: images open, a check finds nothing but leaks, contents are old or new, and a
half-made new file does not open as a whole image. After the others the command has ended by itself
as well: exit status 128 and the signal's number, one line, and what it had made is gone.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from imgtool.__main__ import main as imgtool
from tests.campaigns.running import Tally, named, parser
from tests.campaigns.scenarios import CHANGING
from tests.campaigns.scenarios.model import Scenario
from tests.campaigns.workshop import Outcome, Workshop, Wrong
from tests.kit.scratch import scratch

#: A command that has not ended so many seconds after it was told to hangs.
TIMEOUT = 120


def start(workshop: Workshop) -> int:
    """Run the scenario's command in a child, as its main program; return the process id.

    The child is a copy of this process, so that everything is loaded, and the moments at which it
    is ended are spent on what the command does.
    """
    for name in ("out", "err"):
        (workshop.place.parent / name).write_bytes(b"")  # not what the last one said
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.chdir(workshop.place)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(workshop.place.parent / name, os.O_WRONLY)
            os.dup2(file, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["imgtool", *workshop.scenario.command]
        for signal_number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signal_number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        imgtool()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0
    except KeyboardInterrupt:
        pass  # before main() could hear of it
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> Outcome | None:
    """Wait for a child; return its status, negative if a signal ended it. Raises on a hang."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return Outcome(os.waitstatus_to_exitcode(status))
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise Wrong("it hangs")


def kill(workshop: Workshop, delay: float, number: int, *, qemu: bool = False) -> str:
    """Start the command, end it after ``delay`` seconds with a signal, and judge what is left."""
    workshop.reset()
    child = start(workshop)
    time.sleep(delay)
    os.kill(child, number)  # it has not been waited for, so it is still ours
    outcome = wait(child)
    assert outcome is not None
    outcome.err = (workshop.place.parent / "err").read_text() if outcome.status != -9 else ""
    if outcome.status in (-number, 99) and number != signal.SIGKILL and not outcome.err:
        # It was told before it had got as far as main().
        workshop.judge(qemu=qemu)
        return "not begun"
    killed = outcome.status == -signal.SIGKILL
    interrupted = outcome.status == 128 + number
    if not (killed or interrupted) and outcome.status != 0:
        raise Wrong(f"it ended otherwise: {outcome}")
    if "Traceback" in outcome.err:
        raise Wrong(f"a traceback: {outcome.err}")
    if interrupted and outcome.err.splitlines()[-1:] != ["imgtool: Interrupted"]:
        raise Wrong(f"it says something else: {outcome.err}")
    try:
        notes = workshop.judge(killed=killed, finished=outcome.status == 0, qemu=qemu)
    except Wrong:
        if not interrupted:
            raise
        # Told between its last act and its end: then all of it is done, and stays.
        notes = workshop.judge(finished=True, qemu=qemu) | {"all done"}
    done = "finished" if outcome.status == 0 else "ended"
    return ", ".join([done, *sorted(notes)])


def duration(workshop: Workshop) -> float:
    """How many seconds the command takes, from the fork to the end."""
    fastest = float(TIMEOUT)
    for _ in range(3):
        workshop.reset()
        begun = time.monotonic()
        assert wait(start(workshop))
        fastest = min(fastest, time.monotonic() - begun)
    return fastest


def campaign(
    scenarios: Sequence[Scenario],
    kills: int,
    *,
    number: int = signal.SIGKILL,
    seed: int = 0,
    folder: Path | None = None,
) -> Tally:
    """End commands ``kills`` times in all, each scenario as often as every other."""
    tally = Tally()
    chance = random.Random(seed)
    for index, scenario in enumerate(scenarios):
        times = kills * (index + 1) // len(scenarios) - kills * index // len(scenarios)
        if not times:
            continue
        with scratch(folder and folder / scenario.name) as place:
            workshop = Workshop(scenario, place)
            most = 1.2 * duration(workshop)
            for _ in range(times):
                tally.count(scenario.subcommand)
                delay = chance.uniform(0, most)
                with tally.attempt(f"{scenario.name} after {delay * 1000:.1f} ms"):
                    tally.note(kill(workshop, delay, number, qemu=not chance.randrange(20)))
    return tally


def main() -> int:
    """The long form."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=1000, metavar="N", help="how often in all")
    arguments.add_argument("--signal", default="KILL", choices=("KILL", "INT", "TERM", "HUP"))
    arguments.add_argument("names", nargs="*", help="scenarios, by the beginning of their names")
    chosen = arguments.parse_args()
    scenarios = named(CHANGING, chosen.names)
    number = getattr(signal, f"SIG{chosen.signal}")
    return campaign(scenarios, chosen.kills, number=number, seed=chosen.seed).tell()


if __name__ == "__main__":
    sys.exit(main())
