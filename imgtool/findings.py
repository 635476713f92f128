"""What a check finds: counted in full, told one by one as far as that helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Report = Callable[[str], None]

#: How many findings a result keeps; each is some 100 bytes.
KEPT = 1000
#: How many are told to a listener. A stranger's image can hold thousands of millions.
TOLD = 100_000


@dataclass
class CheckResult:
    """What a check found. Counts are clusters, offsets bytes.

    ``messages`` are the first findings, one line each, in the order in which they were made;
    ``untold`` is how many more there were than could be listed or reported. After a repair the
    counts are what is left, and ``leaks_fixed`` and ``corruptions_fixed`` what was repaired.
    """

    corruptions: int = 0
    leaks: int = 0
    check_errors: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    messages: list[str] = field(default_factory=list)
    untold: int = 0
    leaks_fixed: int = 0
    corruptions_fixed: int = 0


class Findings:
    """Counts into ``result`` and passes each finding on to ``report``, as text of one line."""

    def __init__(self, result: CheckResult, report: Report | None = None) -> None:
        self.result = result
        self._report = report
        self._told = 0
        self._limit = KEPT if report is None else TOLD

    @property
    def listening(self) -> bool:
        """Whether another finding would be told, so that it is worth putting into words."""
        return self._told < self._limit

    def corruption(self, text: str, times: int = 1) -> None:
        """Something contradicts the format; the same was found ``times`` times."""
        self.result.corruptions += times
        self.tell(text, times)

    def leak(self, text: str) -> None:
        """Space is lost, and nothing worse."""
        self.result.leaks += 1
        self.tell(text)

    def failure(self, text: str) -> None:
        """Something could not be checked."""
        self.result.check_errors += 1
        self.tell(text)

    def tell(self, text: str, times: int = 1) -> None:
        """Pass on what has been counted."""
        now = min(times, self._limit - self._told)
        self._told += now
        self.result.untold += times - now
        for _ in range(now):
            if len(self.result.messages) < KEPT:
                self.result.messages.append(text)
            if self._report is not None:
                self._report(text)

    def untold_corruptions(self, count: int) -> None:
        """Count corruptions that nobody listens to any more."""
        self.result.corruptions += count
        self.result.untold += count

    def untold_leaks(self, count: int) -> None:
        """Count leaks that nobody listens to any more."""
        self.result.leaks += count
        self.result.untold += count

    def untold_failures(self, count: int) -> None:
        """Count failures that nobody listens to any more."""
        self.result.check_errors += count
        self.result.untold += count
