"""Draws the chart for README.md: how long imgtool takes next to qemu-img, as bars, in SVG."""

from __future__ import annotations

from xml.sax.saxutils import escape

from benchmarks.judge import Verdict, verdicts
from benchmarks.results import Results

_WIDTH = 920
_LEFT = 400
_RIGHT = 130
_LINE = 24
_TOP = 58
#: The end of the axis, in times of the baseline; what takes longer runs into the border.
_END = 1.25

_STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f; }
    .head { font-weight: 600; font-size: 15px; }
    .soft { fill: #57606a; }
    .bar { fill: #2f81c7; }
    .late { fill: #c4682b; }
    .goal { stroke: #24292f; stroke-width: 2; }
    .even { stroke: #8c959f; stroke-dasharray: 3 3; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .soft { fill: #9198a1; }
      .bar { fill: #4a9eea; }
      .late { fill: #e08a4f; }
      .goal { stroke: #e6edf3; }
      .even { stroke: #6e7681; }
    }
"""


def draw(results: Results) -> str:
    """Return the chart: one bar for each goal that was measured next to another tool."""
    bars = [verdict for verdict in verdicts(results) if _belongs(verdict)]
    height = _TOP + len(bars) * _LINE + 14
    even = _x(1)
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" '
        'aria-label="Times of imgtool next to qemu-img">',
        f"  <style>{_STYLE}  </style>",
        '  <text class="head" x="8" y="22">Time that imgtool takes, qemu-img = 1</text>',
        '  <text class="soft" x="8" y="42">Shorter is faster. The mark is the goal.</text>',
        f'  <text class="soft" x="{even:.1f}" y="{_TOP - 8}" text-anchor="middle">1</text>',
        f'  <line class="even" x1="{even:.1f}" x2="{even:.1f}" y1="{_TOP - 4}" y2="{height - 8}"/>',
    ]
    for number, verdict in enumerate(bars):
        pieces += _bar(verdict, _TOP + number * _LINE)
    return "\n".join([*pieces, "</svg>", ""])


def _belongs(verdict: Verdict) -> bool:
    """Say whether imgtool is expected to take about as long as the baseline or less."""
    goal = verdict.goal
    return verdict.value is not None and (
        goal.kind == "speed" or (goal.kind == "ratio" and goal.limit <= 1)
    )


def _bar(verdict: Verdict, top: int) -> list[str]:
    goal = verdict.goal
    assert verdict.value is not None
    faster = goal.kind == "speed"
    time = 1 / verdict.value if faster else verdict.value
    wanted = 1 / goal.limit if faster else goal.limit
    text = goal.text if goal.baseline == "qemu-img" else f"{goal.text} ({goal.baseline} = 1)"
    style = "bar" if verdict.reached else "late"
    value = f"{time:.2g}" if time < 1 else f"{time:.2f}"
    label = f"{value}  ({1 / time:.0f} × faster)" if time <= 0.5 else value
    width = max(_x(time) - _LEFT, 1)
    mark = _x(wanted)
    middle = top + _LINE / 2 + 4.5
    end = max(_x(time), mark) + 6
    return [
        f'  <text x="{_LEFT - 8}" y="{middle}" text-anchor="end">{escape(text)}</text>',
        f'  <rect class="{style}" x="{_LEFT}" y="{top + 5}" width="{width:.1f}" '
        f'height="{_LINE - 10}" rx="2"/>',
        f'  <line class="goal" x1="{mark:.1f}" x2="{mark:.1f}" y1="{top + 3}" '
        f'y2="{top + _LINE - 3}"/>',
        f'  <text x="{end:.1f}" y="{middle}">{label}</text>',
    ]


def _x(time: float) -> float:
    return _LEFT + min(time, _END) / _END * (_WIDTH - _LEFT - _RIGHT)
