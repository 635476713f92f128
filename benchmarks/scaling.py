"""How costs grow: with what is allocated, with the disk's size, with extents, with workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inputs import GIB, MIB, TIB, Inputs, fragmented
from benchmarks.model import Contender
from benchmarks.rows import imgtool
from benchmarks.runner import compete

#: What takes less than this, in seconds, or than this share of the start, is not told from it.
_NOISE = 0.005
_NOISE_SHARE = 0.15

#: The cluster of the fragmented images.
_FRAGMENT = 4096

#: Fewer points than this have no exponent.
_FEWEST_POINTS = 2

#: A point of a series: what has grown, in its unit, and the command.
Point = tuple[float, str, Contender]


@dataclass(frozen=True)
class Series:
    """One command on images of which one thing grows."""

    cost: str
    image: str
    grows: str
    #: The same command on an empty disk of 1 MiB: what its start costs.
    start: Contender
    points: Sequence[Point]


def measure_all(
    inputs: Inputs, runs: int, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure every series, ``runs`` times each point, as the results file records them."""
    return [_measure(series, runs, inputs.scale.settle, say) for series in all_series(inputs)]


def all_series(inputs: Inputs) -> list[Series]:
    """Return every command with everything that may grow."""
    most = inputs.scale.dense
    allocated = [most >> shift for shift in (4, 3, 2, 1, 0)]
    tables = [inputs.scale.table >> shift for shift in (6, 4, 2, 0)]
    virtual = [64 * TIB >> shift for shift in (9, 6, 3, 0)]
    extents = [most // (2 * _FRAGMENT) >> shift for shift in (6, 4, 2, 0)]
    data = [(size / MIB, f"{size // MIB} MiB", _dense(inputs, size)) for size in allocated]
    table = [(size / GIB, f"{size // GIB} GiB", inputs.table_of(size)) for size in tables]
    empty = [(size / GIB, f"{size // GIB} GiB", inputs.empty_of(size)) for size in virtual]
    pieces = [(count, str(count), fragmented(inputs, count, _FRAGMENT)) for count in extents]
    largest = data[-1][2]
    return [
        *(
            _series(inputs, cost, "noise", "data", data)
            for cost in ("convert", "convert -c", "hash")
        ),
        *(
            _series(inputs, cost, "metadata, no data", "allocated clusters", table)
            for cost in ("check", "map", "measure", "info")
        ),
        *(_series(inputs, cost, "empty", "virtual size", empty) for cost in _COSTS),
        *(
            _series(inputs, cost, "every second 4 KiB cluster", "extents", pieces)
            for cost in _COSTS
        ),
        *(_by_workers(inputs, cost, largest) for cost in ("convert", "convert -c", "hash")),
    ]


#: The commands, by the name that the report gives them.
_COSTS = {
    "convert": ["convert", "-O", "qcow2"],
    "convert -c": ["convert", "-c", "-O", "qcow2"],
    "check": ["check"],
    "map": ["map", "--output", "json"],
    "measure": ["measure", "-O", "qcow2"],
    "info": ["info"],
    "hash": ["hash"],
}


def _dense(inputs: Inputs, size: int) -> Path:
    """Return an image that holds the first ``size`` bytes of the noise, on the same disk."""

    def make_raw(path: Path) -> None:
        with open(inputs.dense_raw, "rb") as source, open(path, "wb") as target:
            for _ in range(size // MIB):
                target.write(source.read(MIB))
            target.truncate(inputs.scale.dense)

    return inputs.converted(inputs.made(f"dense-{size}.raw", make_raw), f"dense-{size}.qcow2")


def _contender(inputs: Inputs, cost: str, image: Path, *options: str) -> Contender:
    command, *rest = _COSTS[cost]
    arguments = [command, "-f", "qcow2", *rest, *options, str(image)]
    outputs = []
    if command == "convert":
        outputs = [inputs.output(".qcow2")]
        arguments.append(str(outputs[0]))
    return Contender(" ".join((cost, image.stem, *options)), [imgtool(*arguments)], outputs=outputs)


def _series(
    inputs: Inputs, cost: str, image: str, grows: str, images: Sequence[tuple[float, str, Path]]
) -> Series:
    points = [(x, label, _contender(inputs, cost, path)) for x, label, path in images]
    return Series(cost, image, grows, _contender(inputs, cost, inputs.empty_of(MIB)), points)


def _by_workers(inputs: Inputs, cost: str, image: Path) -> Series:
    points = [
        (workers, f"-m {workers}", _contender(inputs, cost, image, "-m", str(workers)))
        for workers in (1, 2, 4)
    ]
    return Series(cost, "noise", "workers", _contender(inputs, cost, inputs.empty_of(MIB)), points)


def _measure(series: Series, runs: int, settle: bool, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{series.cost}, {series.image}, {series.grows}")
    contenders = [series.start, *(contender for _, _, contender in series.points)]
    measured = compete(contenders, runs, warm_ups=1, settle=settle, say=say)
    fastest = [min(measured[each.name].seconds) for each in contenders]
    sizes = [x for x, _, _ in series.points]
    return {
        "cost": series.cost,
        "image": series.image,
        "grows": series.grows,
        "start": fastest[0],
        "measured": [
            [label, seconds]
            for (_, label, _), seconds in zip(series.points, fastest[1:], strict=True)
        ],
        "exponent": exponent(sizes, fastest[1:], fastest[0]),
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float], start: float) -> float | None:
    """Return b of a·x^b, fitted to what the ``seconds`` are beyond the ``start``.

    None if too few of the points differ from the start by more than noise.
    """
    import numpy as np

    least = max(_NOISE, start * _NOISE_SHARE)
    points = [
        (math.log(x), math.log(y - start))
        for x, y in zip(sizes, seconds, strict=True)
        if y - start > least
    ]
    if len(points) < _FEWEST_POINTS:
        return None
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])
