"""``-p``: a bar on a terminal, qemu-img's percentages elsewhere, or JSON for programs."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from imgtool.progress import Progress, Throttled
from imgtool.units import format_size


@contextlib.contextmanager
def shown(mode: str | None, *, stream: TextIO | None = None) -> Iterator[Progress | None]:
    """Give the callback that shows progress: ``mode`` is None (nothing), "human" or "json".

    People are shown it on ``stream``, by default stdout, as qemu-img does; programs on stderr.
    """
    if mode is None:
        yield None
        return
    stream = sys.stdout if stream is None else stream
    kind = _Json if mode == "json" else _Bar if stream.isatty() else _Percent
    display = kind(sys.stderr if mode == "json" else stream)
    try:
        # qemu-img's percentages come in steps of one per cent, however fast that is.
        yield display if isinstance(display, _Percent) else Throttled(display)
    except BaseException:
        display.end(whole=False)
        raise
    display.end(whole=True)


class _Percent:
    """``    (12.34/100%)``, each over the last: what programs parse."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._print(0.0)

    def __call__(self, done: int, total: int) -> None:
        percent = 100.0 * done / total if total else 100.0
        if percent - self._shown >= 1.0:
            self._print(percent)

    def _print(self, percent: float) -> None:
        self._shown = percent
        self._stream.write(f"    ({percent:3.2f}/100%)\r")
        self._stream.flush()

    def end(self, *, whole: bool) -> None:
        if whole and self._shown < 100:
            self._print(100.0)
        self._stream.write("\n")
        self._stream.flush()


class _Bar:
    """A bar with the rate and the time that is left, redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._total: int | None = None

    def __call__(self, done: int, total: int) -> None:
        self._total = total
        seconds = time.monotonic() - self._started
        rate = done / seconds if seconds > 0 else 0.0
        left = f", {_clock((total - done) / rate)} left" if rate and done < total else ""
        figures = (
            f" {100.0 * done / total if total else 100.0:5.1f}%  {format_size(done)} of "
            f"{format_size(total)}, {format_size(int(rate))}/s{left}"
        )
        columns = shutil.get_terminal_size().columns
        width = min(40, columns - len(figures) - 3)
        full = width * done // total if total else width
        bar = f"[{'=' * full}{' ' * (width - full)}]" if width >= 5 else ""
        self._stream.write(f"\r{(bar + figures)[: columns - 1]}\x1b[K")
        self._stream.flush()

    def end(self, *, whole: bool) -> None:
        if self._total is None:
            return
        if whole:
            self(self._total, self._total)
        self._stream.write("\n")
        self._stream.flush()


class _Json:
    """One JSON object a line: ``done`` and ``total`` (bytes), ``elapsed`` (seconds)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._started
        self._stream.write(f'{{"done": {done}, "total": {total}, "elapsed": {elapsed:.3f}}}\n')
        self._stream.flush()

    def end(self, *, whole: bool) -> None:
        return None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
