"""What a scenario is: a command, its files, and the images that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """A file that a scenario leaves: ``made`` by the command, or ``changed``, or ``kept``.

    ``kept`` is said of what its disk shows. ``broken`` images were damaged before, so that they
    are asked to pass a check only when they have been repaired; what ``random`` ones hold differs
    each time.
    """

    name: str
    format: str = "qcow2"
    fate: str = "changed"
    password: str | None = None
    broken: bool = False
    random: bool = False


@dataclass(frozen=True)
class Scenario:
    """One command line, the files that it needs, and the images to judge afterwards."""

    name: str
    build: Callable[[Path], None]
    command: tuple[str, ...]
    images: tuple[Image, ...] = ()

    @property
    def subcommand(self) -> str:
        """What of imgtool it runs."""
        return self.command[0]

    @property
    def stages(self) -> list[tuple[str, ...]]:
        """The command cut off behind each of its steps but the last, where it has several."""
        ends = [at for at, word in enumerate(self.command) if word == "-c"]
        if self.subcommand != "io":
            return []
        rest = self.command[ends[-1] + 2 :]
        return [(*self.command[:end], *rest) for end in ends[1:]]

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return not self.images
