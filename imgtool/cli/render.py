"""Output for people and for programs, laid out as qemu-img lays it out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgtool.cli.errors import printable
from imgtool.units import format_size

if TYPE_CHECKING:
    from imgtool.description import SnapshotInfo
    from imgtool.ops.info import ImageInfo

_SHORT_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def to_json(value: Any, indent: str = "") -> str:
    """Return ``value`` as JSON in QEMU's layout: four spaces, and an empty list on two lines."""
    if isinstance(value, str):
        return f'"{"".join(map(_escape, value))}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int):
        return str(value)
    inner = indent + "    "
    if isinstance(value, Mapping):
        items = [f"{to_json(name)}: {to_json(item, inner)}" for name, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [to_json(item, inner) for item in value]
        opening, closing = "[", "]"
    body = ",\n".join(inner + item for item in items)
    return f"{opening}\n{body}\n{indent}{closing}" if items else f"{opening}\n{indent}{closing}"


def _escape(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    code = ord(character)
    if 0x20 <= code < 0x7F:
        return character
    if 0xD800 <= code < 0xE000:
        # A byte of a file name that is not UTF-8.
        return "\\uFFFD"
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}"
    return f"\\u{code:04X}"


def info_lines(info: ImageInfo) -> Iterator[str]:
    """The lines of ``info`` for people."""
    yield f"image: {printable(info.filename)}"
    yield f"file format: {info.format}"
    yield f"virtual size: {_both(info.virtual_size)}"
    yield f"disk size: {format_size(info.actual_size)}"
    if info.encrypted:
        yield "encrypted: yes"
    if info.cluster_size is not None:
        yield f"cluster_size: {info.cluster_size}"
    if info.dirty_flag:
        yield "cleanly shut down: no"
    if info.backing_filename is not None:
        yield f"backing file: {printable(info.backing_filename)}{_actual_path(info)}"
        if info.backing_filename_format is not None:
            yield f"backing file format: {printable(info.backing_filename_format)}"
    if info.snapshots:
        yield "Snapshot list:"
        yield from snapshot_lines(info.snapshots)
    if info.format_specific:
        yield "Format specific information:"
        yield from _facts(info.format_specific, "    ")
    for child in info.children:
        yield f"Child node '/{child.name}':"
        yield f"    filename: {printable(child.info.filename)}"
        yield f"    protocol type: {child.info.format}"
        yield f"    file length: {_both(child.info.virtual_size)}"
        yield f"    disk size: {format_size(child.info.actual_size)}"


def _both(size: int) -> str:
    return f"{format_size(size)} ({size} bytes)"


def _actual_path(info: ImageInfo) -> str:
    if info.full_backing_filename is None:
        return " (cannot determine actual path)"
    if info.full_backing_filename == info.backing_filename:
        return ""
    return f" (actual path: {printable(info.full_backing_filename)})"


def snapshot_lines(snapshots: Sequence[SnapshotInfo]) -> Iterator[str]:
    """A table of snapshots."""
    row = "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}".format
    yield row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
    for snapshot in snapshots:
        seconds, nanoseconds = divmod(snapshot.vm_clock_nsec, 10**9)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        yield row(
            printable(snapshot.id),
            printable(snapshot.name),
            format_size(snapshot.vm_state_size),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec)),
            f"{hours:04}:{minutes:02}:{seconds:02}.{nanoseconds // 10**6:03}",
            "--" if snapshot.icount is None else str(snapshot.icount),
        )


def _facts(value: Any, indent: str) -> Iterator[str]:
    """Nested facts, one a line; names lose their hyphens."""
    if isinstance(value, Mapping):
        pairs = [(str(name).replace("-", " "), item) for name, item in value.items()]
    else:
        pairs = [(f"[{index}]", item) for index, item in enumerate(value)]
    for name, item in pairs:
        if isinstance(item, (Mapping, list, tuple)):
            yield f"{indent}{name}:"
            yield from _facts(item, indent + "    ")
        elif isinstance(item, bool):
            yield f"{indent}{name}: {'true' if item else 'false'}"
        else:
            yield f"{indent}{name}: {printable(str(item))}"
