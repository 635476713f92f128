"""The real qemu-img and qemu-io, asked from Python."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from tests.kit.tools import require_tool

Path = str | os.PathLike[str]

#: Longer than any command takes, unless it hangs.
_TIMEOUT = 120


def run(tool: str, *arguments: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it printed; whether it failed is the caller's to judge."""
    return subprocess.run(
        [require_tool(tool), *map(os.fspath, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="surrogateescape",
        check=False,
        cwd=cwd,
        timeout=_TIMEOUT,
    )


def must(tool: str, *arguments: Path, cwd: Path | None = None) -> str:
    """Run a tool that has to succeed and return its standard output."""
    done = run(tool, *arguments, cwd=cwd)
    assert done.returncode == 0, f"{tool} {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def _pairs(options: Mapping[str, object] | None) -> str:
    words = {True: "on", False: "off"}
    return ",".join(
        f"{name}={words[value] if isinstance(value, bool) else str(value).replace(',', ',,')}"
        for name, value in (options or {}).items()
    )


def create(
    path: Path,
    size: int,
    format: str = "qcow2",
    options: Mapping[str, object] | None = None,
    *,
    backing: Path | None = None,
    backing_format: str | None = None,
) -> None:
    """``qemu-img create``."""
    arguments: list[Path] = ["create", "-q", "-f", format]
    if options:
        arguments += ["-o", _pairs(options)]
    if backing is not None:
        assert backing_format is not None
        arguments += ["-b", backing, "-F", backing_format]
    must("qemu-img", *arguments, path, str(size))


def io(
    path: Path, commands: Iterable[str], format: str = "qcow2", *, cwd: Path | None = None
) -> str:
    """Run ``qemu-io`` commands, all in one process and in order; each of them has to succeed."""
    arguments: list[Path] = ["-f", format, "-t", "unsafe", "-d", "unmap"]
    for command in commands:
        arguments += ["-c", command]
    done = run("qemu-io", *arguments, path, cwd=cwd)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert not done.stderr, f"{arguments}: {done.stderr}"
    return done.stdout


def convert(
    source: Path,
    target: Path,
    *,
    format: str | None = None,
    to: str = "raw",
    options: Mapping[str, object] | None = None,
    compress: bool = False,
    snapshot: str | None = None,
) -> None:
    """``qemu-img convert``; ``snapshot`` is an id or a name."""
    arguments: list[Path] = ["convert", "-t", "unsafe", "-O", to]
    if format is not None:
        arguments += ["-f", format]
    if compress:
        arguments.append("-c")
    if snapshot is not None:
        arguments += ["-l", snapshot]
    if options:
        arguments += ["-o", _pairs(options)]
    must("qemu-img", *arguments, source, target)


def contents(path: Path, format: str, folder: Path, *, snapshot: str | None = None) -> bytes:
    """What qemu-img reads from the whole disk. ``folder`` is where it may put the result."""
    target = os.path.join(folder, "contents.raw")
    convert(path, target, format=format, snapshot=snapshot)
    with open(target, "rb") as file:
        found = file.read()
    os.unlink(target)
    return found


def check(path: Path, format: str = "qcow2") -> dict[str, Any]:
    """``qemu-img check --output=json``, with the exit code as ``exit``."""
    done = run("qemu-img", "check", "-f", format, "--output=json", path)
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return {**found, "exit": done.returncode, "error": done.stderr}


def compare(first: Path, second: Path, first_format: str, second_format: str) -> bool:
    """``qemu-img compare``: whether two disks hold the same."""
    done = run("qemu-img", "compare", "-f", first_format, "-F", second_format, first, second)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def mapping(path: Path, format: str = "qcow2") -> list[dict[str, Any]]:
    """``qemu-img map --output=json``."""
    found: list[dict[str, Any]] = json.loads(
        must("qemu-img", "map", "-f", format, "--output=json", path)
    )
    return found


def info(path: Path, format: str = "qcow2") -> dict[str, Any]:
    """``qemu-img info --output=json``."""
    found: dict[str, Any] = json.loads(
        must("qemu-img", "info", "-f", format, "--output=json", path)
    )
    return found


def opens(path: Path, format: str = "qcow2") -> bool:
    """Whether qemu-img opens the image and looks into its first sector."""
    return run("qemu-io", "-r", "-f", format, "-c", "read 0 512", path).returncode == 0
