"""What the campaigns over real files have in common: a folder, a tally, how they are called."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Value = TypeVar("Value")


@dataclass
class Tally:
    """What a campaign has tried and seen."""

    cases: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.cases[what] = self.cases.get(what, 0) + 1

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Try a case: whatever it raises is a failure."""
        try:
            yield
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}"[:500])

    def report(self) -> str:
        lines = [f"{number:7} {what}" for what, number in sorted(self.cases.items())]
        lines += [f"{sum(self.cases.values()):7} in all"]
        lines += [f"{number:7} noted: {what}" for what, number in sorted(self.notes.items())]
        lines += [f"FAILED {text}" for text in self.failures]
        return "\n".join(lines)

    def tell(self) -> int:
        """Print the report; return the exit status."""
        print(self.report(), flush=True)
        return 1 if self.failures else 0


def parser(text: str | None) -> argparse.ArgumentParser:
    """The arguments that every campaign has; ``text`` is its module's."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--seed", type=int, default=0, metavar="N", help="what is drawn")
    return made


def named(known: Mapping[str, Value], names: list[str]) -> list[Value]:
    """Those whose names begin with one of ``names``, or all."""
    return [
        value
        for name, value in known.items()
        if not names or any(name.startswith(one) for one in names)
    ]
