"""The table: which work is done by whom, and what imgtool is to reach."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.inputs import Inputs, tool
from benchmarks.model import Command, Contender, Goal, Row, nothing
from benchmarks.verify import same_answer, same_disk, sound_image

#: The fastest level with which imgtool's zlib images are at most 1.01 times the size of qemu-img's:
#: on the small guest's disk it is 1.005 times, at level 4 it is 1.017 times.
BEST_SIZE_LEVEL = 5

#: No command may take more memory than this, in bytes.
PEAK_LIMIT = 200 << 20

IMGTOOL = "imgtool"
QEMU_IMG = "qemu-img"
PYTHON = "python -c pass"
BEST_SIZE = f"imgtool --compression-level {BEST_SIZE_LEVEL}"
LIBQCOW = "libqcow-python"
DISSECT = "dissect.hypervisor"
PREADV = "os.preadv of raw"

_WORKER = Path(__file__).with_name("inprocess.py")

#: How many calls of imgtool.info one run makes.
_INFO_CALLS = 200


def imgtool(*arguments: str | Path) -> list[str]:
    """Return a command of the imgtool that is installed for this interpreter, as a user has it."""
    script = Path(sys.prefix, "bin", "imgtool")
    if not script.exists():
        raise FileNotFoundError(f"{script} is not there: install imgtool with '.[bench]' first")
    return [str(script), *map(str, arguments)]


def qemu_img(*arguments: str | Path) -> list[str]:
    """Return a command of qemu-img."""
    return [tool("qemu-img"), *map(str, arguments)]


def _both(
    *arguments: str | Path,
    prepare: Callable[[], None] = nothing,
    verify: Callable[[], None] = nothing,
    outputs: Sequence[Path] = (),
) -> list[Contender]:
    """Return both tools, called with the same arguments."""
    commands = {IMGTOOL: imgtool(*arguments), QEMU_IMG: qemu_img(*arguments)}
    return [
        Contender(name, [command], prepare=prepare, verify=verify, outputs=outputs)
        for name, command in commands.items()
    ]


def _convert(inputs: Inputs, source: Path, target: str, *options: str) -> list[Contender]:
    """Return both tools, converting an image into the format ``target``."""
    output = inputs.output(f".{target}")
    formats = ("-f", source.suffix[1:], "-O", target)
    verify = same_disk(source, output)
    return _both(
        "convert", *formats, *options, str(source), output, verify=verify, outputs=[output]
    )


def _deflate(inputs: Inputs) -> list[Contender]:
    source, output = inputs.small_raw, inputs.output(".qcow2")
    level = ("--compression-level", str(BEST_SIZE_LEVEL))
    best = Contender(
        BEST_SIZE,
        [imgtool("convert", "-f", "raw", "-O", "qcow2", "-c", *level, source, output)],
        outputs=[output],
        verify=same_disk(source, output),
    )
    return [*_convert(inputs, source, "qcow2", "-c"), best]


def _compare(inputs: Inputs) -> list[Contender]:
    return _both("compare", "-f", "raw", "-F", "qcow2", inputs.guest_raw, inputs.guest_qcow2)


def _answer(*arguments: str | Path) -> list[Contender]:
    """Return imgtool and qemu-img, asked the same: imgtool's answer must be qemu-img's."""
    verify = same_answer(imgtool(*arguments), qemu_img(*arguments))
    return _both(*arguments, verify=verify)


def _create_table(inputs: Inputs) -> list[Contender]:
    output, size = inputs.output(".qcow2"), inputs.scale.table
    options = ("-q", "-f", "qcow2", "-o", "preallocation=metadata")
    verify = sound_image(output, size)
    return _both("create", *options, output, str(size), verify=verify, outputs=[output])


def _rebase(inputs: Inputs, overlay: Path, base: Path) -> list[Contender]:
    """Return both tools, putting a copy of an overlay on another base."""
    copy = inputs.folder / "output-overlay.qcow2"
    return _both(
        *("rebase", "-f", "qcow2", "-b", base.name, "-F", "qcow2", copy),
        prepare=lambda: _copy(overlay, copy),
        verify=same_disk(overlay, copy),
        outputs=[copy],
    )


def _commit(inputs: Inputs) -> list[Contender]:
    """Return both tools, committing a copy of an overlay into a copy of its base."""
    base, overlay = inputs.small_qcow2, inputs.overlay
    folder = inputs.folder / "output-commit"

    def prepare() -> None:
        folder.mkdir()
        for source in (base, overlay):
            _copy(source, folder / source.name)

    return _both(
        *("commit", "-q", "-f", "qcow2", folder / overlay.name),
        prepare=prepare,
        verify=same_disk(overlay, folder / base.name),
        outputs=[folder],
    )


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    # Else the first command to flush its own would be waiting for the copy.
    with target.open("r+b") as file:
        os.fsync(file.fileno())


def _start(inputs: Inputs, *arguments: str | Path, output: Path | None = None) -> list[Contender]:
    """Return imgtool and an interpreter that does nothing, each called several times a run."""
    batch = inputs.scale.batch
    outputs = [] if output is None else [output]
    pass_ = [sys.executable, "-c", "pass"]
    return [
        Contender(IMGTOOL, [imgtool(*arguments)] * batch, per=batch, outputs=outputs),
        Contender(PYTHON, [pass_] * batch, per=batch),
    ]


def _info(inputs: Inputs) -> list[Contender]:
    return _start(inputs, "info", "-f", "qcow2", inputs.guest_qcow2)


def _create(inputs: Inputs) -> list[Contender]:
    output = inputs.output(".qcow2")
    return _start(inputs, "create", "-q", "-f", "qcow2", output, "10G", output=output)


def _many(inputs: Inputs) -> list[Contender]:
    images = inputs.images
    options = ("info", "--output", "json")
    return [
        Contender(IMGTOOL, [imgtool(*options, *images)]),
        Contender(QEMU_IMG, [qemu_img(*options, image) for image in images]),
    ]


def _worker(name: str, *arguments: str | Path, requires: str | None = None) -> Contender:
    """Return a contender that is timed inside its own process."""
    command = [sys.executable, str(_WORKER), *map(str, arguments)]
    return Contender(name, [command], clock=float, requires=requires)


def _info_call(inputs: Inputs) -> list[Contender]:
    image, batch = inputs.guest_qcow2, inputs.scale.batch
    call: Command = qemu_img("info", "-f", "qcow2", "--output", "json", image)
    return [
        _worker(IMGTOOL, "info", image, str(_INFO_CALLS)),
        Contender(QEMU_IMG, [call] * batch, per=batch),
    ]


def _random(inputs: Inputs) -> list[Contender]:
    image, raw, count = inputs.dense_qcow2, inputs.dense_raw, inputs.scale.reads
    bench = qemu_img("bench", "-f", "qcow2", "-c", str(count), "-d", "1", "-s", "4096", image)

    def clock(printed: str) -> float:
        found = re.search(r"Run completed in ([0-9.]+) seconds", printed)
        if found is None:
            raise RuntimeError(f"qemu-img bench prints {printed!r}")
        return float(found[1]) / count

    return [
        _worker(IMGTOOL, "random", "imgtool", image, raw, str(count)),
        Contender(QEMU_IMG, [bench], clock=clock),
        _worker(LIBQCOW, "random", "libqcow", image, raw, str(count), requires="pyqcow"),
        _worker(DISSECT, "random", "dissect", image, raw, str(count), requires="dissect"),
    ]


def _sequential(inputs: Inputs) -> list[Contender]:
    image, raw = inputs.dense_qcow2, inputs.dense_raw
    return [
        _worker(IMGTOOL, "sequential", "imgtool", image, raw),
        _worker(PREADV, "sequential", "preadv", raw, raw),
    ]


def _empty_convert(inputs: Inputs) -> list[Contender]:
    source, output = inputs.empty, inputs.output(".qcow2")
    command = imgtool("convert", "-f", "qcow2", "-O", "qcow2", source, output)
    verify = sound_image(output, 64 << 40)
    return [Contender(IMGTOOL, [command], outputs=[output], verify=verify)]


def _empty_map(inputs: Inputs) -> list[Contender]:
    return _answer("map", "-f", "qcow2", "--output", "json", inputs.empty)[:1]


def _empty_check(inputs: Inputs) -> list[Contender]:
    return _answer("check", "-f", "qcow2", "--output", "json", inputs.empty)[:1]


def _empty_hash(inputs: Inputs) -> list[Contender]:
    return [Contender(IMGTOOL, [imgtool("hash", "-f", "qcow2", inputs.empty)])]


ROWS: Sequence[Row] = (
    Row(
        "raw-qcow2",
        lambda inputs: _convert(inputs, inputs.guest_raw, "qcow2"),
        [Goal("raw → qcow2", "ratio", 0.9)],
    ),
    Row(
        "qcow2-raw",
        lambda inputs: _convert(inputs, inputs.guest_qcow2, "raw"),
        [Goal("qcow2 → raw", "ratio", 1.0)],
    ),
    Row(
        "raw-zlib",
        _deflate,
        [
            Goal("raw → qcow2 -c (zlib)", "ratio", 0.12, size=1.10),
            Goal("raw → qcow2 -c (zlib), best size", "ratio", 0.6, subject=BEST_SIZE, size=1.01),
        ],
    ),
    Row(
        "raw-zstd",
        lambda inputs: _convert(
            inputs, inputs.small_raw, "qcow2", "-c", "-o", "compression_type=zstd"
        ),
        [Goal("raw → qcow2 -c (zstd)", "ratio", 0.25, size=1.02)],
    ),
    Row(
        "zlib-raw",
        lambda inputs: _convert(inputs, inputs.guest_zlib, "raw"),
        [Goal("zlib qcow2 → raw", "ratio", 0.4)],
    ),
    Row(
        "zstd-raw",
        lambda inputs: _convert(inputs, inputs.guest_zstd, "raw"),
        [Goal("zstd qcow2 → raw", "ratio", 0.8)],
    ),
    Row("compare", _compare, [Goal("compare raw with qcow2", "ratio", 1.0)]),
    Row(
        "check",
        lambda inputs: _answer("check", "-f", "qcow2", "--output", "json", inputs.table),
        [Goal("check, 1 TiB allocated", "ratio", 0.35)],
    ),
    Row(
        "map",
        lambda inputs: _answer("map", "-f", "qcow2", "--output", "json", inputs.table),
        [Goal("map --output json, 1 TiB allocated", "ratio", 0.35)],
    ),
    Row(
        "measure",
        lambda inputs: _answer(
            "measure", "-f", "qcow2", "-O", "qcow2", "--output", "json", inputs.table
        ),
        [Goal("measure, 1 TiB allocated", "ratio", 0.35)],
    ),
    Row(
        "create-metadata",
        _create_table,
        [Goal("create preallocation=metadata, 1 TiB", "ratio", 0.25)],
    ),
    Row(
        "rebase",
        lambda inputs: _rebase(inputs, inputs.overlay, inputs.other_base),
        [Goal("rebase, 1 GiB changed, onto another base", "ratio", 1.0)],
    ),
    Row(
        "rebase-down",
        lambda inputs: _rebase(inputs, inputs.top, inputs.small_qcow2),
        [Goal("rebase, 1 GiB changed below, onto its base", "ratio", 1.0)],
    ),
    Row("commit", _commit, [Goal("commit, 1 GiB changed", "ratio", 1.0)]),
    Row("info", _info, [Goal("info, as a command", "ratio", 8, baseline=PYTHON)]),
    Row("create", _create, [Goal("create, as a command", "ratio", 8, baseline=PYTHON)]),
    Row("many-info", _many, [Goal("info of 1000 images", "ratio", 0.25)]),
    Row("info-call", _info_call, [Goal("imgtool.info(path), in process", "speed", 20)]),
    Row(
        "random-reads",
        _random,
        [
            Goal("random 4 KiB reads, in process", "speed", 1),
            Goal("random 4 KiB reads, in process", "speed", 2, baseline=LIBQCOW),
            Goal("random 4 KiB reads, in process", "speed", 8, baseline=DISSECT),
        ],
    ),
    Row(
        "sequential-reads",
        _sequential,
        [Goal("sequential 1 MiB reads, in process", "speed", 0.9, baseline=PREADV)],
    ),
    Row("empty-convert", _empty_convert, [Goal("convert, empty, 64 TiB", "seconds", 1)]),
    Row("empty-map", _empty_map, [Goal("map --output json, empty, 64 TiB", "seconds", 1)]),
    Row("empty-check", _empty_check, [Goal("check, empty, 64 TiB", "seconds", 1)]),
    Row("empty-hash", _empty_hash, [Goal("hash, empty, 64 TiB", "seconds", 1)]),
)
