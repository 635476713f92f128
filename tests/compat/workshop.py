"""Where corpus images are made: one directory, and the real tools."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.kit.tools import require_tool


class Workshop:
    """Makes one image in ``directory``. Any failure of a tool is an error of the recipe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._img = require_tool("qemu-img")
        self._io = require_tool("qemu-io")

    def create(self, path: Path, format: str, size: str, options: str) -> None:
        """Create an image; files that ``options`` name lie beside it."""
        chosen = ("-o", options) if options else ()
        self.img("create", "-q", "-f", format, *chosen, str(path), size)

    def io(self, path: Path, format: str, *commands: str) -> None:
        """Run qemu-io commands in one process, discards passed on."""
        if not commands:
            return
        arguments = [self._io, "-d", "unmap", "-f", format]
        for command in commands:
            name, _, rest = command.partition(" ")
            arguments += ["-c", f"{name} -q {rest}"]
        done = self._run([*arguments, str(path)])
        # qemu-io goes on after a failed command and reports it on its output only.
        if "failed" in done or "Invalid" in done or "expect" in done:
            raise AssertionError(f"{arguments}: {done}")

    def abort(self, path: Path, command: str) -> None:
        """Run a qemu-io command in a process that dies behind it, so that bitmaps stay in use."""
        arguments = [self._io, "-f", "qcow2", "-c", command, "-c", "abort", str(path)]
        done = subprocess.run(arguments, cwd=self.directory, capture_output=True, check=False)
        assert done.returncode == -signal.SIGABRT

    def img(self, *arguments: str) -> None:
        """Run qemu-img."""
        self._run([self._img, *arguments])

    def _run(self, arguments: list[str]) -> str:
        done = subprocess.run(
            arguments, cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"{arguments}: {done.stderr}")
        return done.stdout + done.stderr
