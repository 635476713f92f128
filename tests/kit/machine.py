"""A virtual machine that saves its state into an image."""

from __future__ import annotations

import os
import subprocess

from tests.kit.tools import require_tool


def save_machine(path: str | os.PathLike[str], *names: str, load: str | None = None) -> None:
    """Let QEMU take snapshots of a qcow2 disk that hold a (small, halted) machine's state.

    The machine begins with the state of the snapshot ``load``, if that is given.
    """
    program = require_tool("qemu-system-x86_64")
    machine = ["-machine", "pc,accel=tcg", "-m", "4", "-nodefaults", "-display", "none", "-S"]
    if load is not None:
        machine += ["-loadvm", load]
    drive = f"if=ide,format=qcow2,file={os.fspath(path)}"
    commands = "".join(f"savevm {name}\n" for name in names)
    done = subprocess.run(
        [program, *machine, "-monitor", "stdio", "-drive", drive],
        input=commands + "quit\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
