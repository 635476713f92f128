"""``convert``'s options next to qemu-img's: what is refused, and what the target then holds."""

from __future__ import annotations

import subprocess

import pytest

from tests.compat.twins import Twins
from tests.kit.tools import require_tool


@pytest.fixture
def prepared(twins: Twins) -> Twins:
    """a.q with the snapshots s1 (id 1) and 1 (id 2), and a smaller a.raw."""
    twins.img("create", "-q", "-f", "qcow2", "a.q", "4M")
    twins.io("-c", "write -P 1 0 1M", "-c", "write -P 2 2M 100k", "a.q")
    twins.img("snapshot", "-c", "s1", "a.q")
    twins.io("-c", "write -P 3 0 64k", "a.q")
    twins.img("snapshot", "-c", "1", "a.q")
    twins.io("-c", "write -P 4 0 64k", "a.q")
    twins.img("create", "-q", "a.raw", "1M")
    return twins


def _same(twins: Twins, name: str) -> None:
    done = subprocess.run(
        [require_tool("qemu-img"), "compare", f"qemu/{name}", f"imgtool/{name}"],
        cwd=twins.base,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.q", "b"),
        ("a.q", "a.raw", "b"),
        ("-O", "qcow2", "a.q", "b"),
        ("-O", "qcow2", "-c", "-o", "compression_type=zstd", "a.q", "b"),
        ("-S", "0", "a.q", "b"),
        ("-S", "3k", "a.q", "b"),
        ("-m", "1", "-W", "-T", "none", "-t", "writeback", "a.q", "b"),
        ("-r", "0", "-U", "a.q", "b"),
        ("-l", "s1", "a.q", "b"),
        ("-l", "1", "a.q", "b"),
        ("-l", "snapshot.id=1", "a.q", "b"),
        ("-l", "snapshot.name=1", "a.q", "b"),
        ("-l", "snapshot.id=2,snapshot.name=1", "a.q", "b"),
        ("--image-opts", "driver=qcow2,file.filename=a.q", "b"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"a.q"}}', "b"),
        ("-n", "-O", "qcow2", "a.raw", "a.q"),
        ("-n", "--target-image-opts", "a.raw", "driver=qcow2,file.filename=a.q"),
        ("-p", "-q", "a.q", "b"),
    ],
)
def test_conversions(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("convert", *arguments) == 0
    _same(prepared, "a.q" if "-n" in arguments else "b")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a.q",),
        ("nope", "b"),
        ("-p", "nope", "b"),
        ("a.q", "nodir/b"),
        ("-O", "bogus", "a.q", "b"),
        ("-f", "bogus", "a.q", "b"),
        ("-c", "a.q", "b"),
        ("-n", "a.q", "b"),
        ("-n", "a.q", "a.raw"),
        ("-n", "-o", "size=1M", "a.q", "b"),
        ("--target-is-zero", "a.q", "b"),
        ("-C", "-S", "4k", "a.q", "b"),
        ("-C", "-c", "-O", "qcow2", "a.q", "b"),
        ("-C", "--salvage", "a.q", "b"),
        ("-B", "a.raw", "-O", "qcow2", "a.q", "b"),
        ("-O", "qcow2", "-o", "backing_file=a.raw", "a.q", "b"),
        ("-B", "a.raw", "-F", "raw", "a.q", "b"),
        ("-F", "raw", "-O", "qcow2", "a.q", "b"),
        ("-c", "-O", "qcow2", "-o", "preallocation=full", "a.q", "b"),
        ("-m", "0", "a.q", "b"),
        ("-m", "17", "a.q", "b"),
        ("-m", "x", "a.q", "b"),
        ("-S", "100", "a.q", "b"),
        ("-S", "5G", "a.q", "b"),
        ("-S", "x", "a.q", "b"),
        ("-r", "x", "a.q", "b"),
        ("-l", "nope", "a.q", "b"),
        ("-l", "snapshot.name=2", "a.q", "b"),
        ("-l", "snapshot.id=1,snapshot.name=1", "a.q", "b"),
        ("-l", "snapshot.bogus=1", "a.q", "b"),
        ("-l", "s1", "a.q", "a.q", "b"),
        ("--target-image-opts", "a.q", "driver=raw,file.filename=b"),
        ("-n", "--target-image-opts", "-O", "raw", "a.q", "driver=raw,file.filename=a.raw"),
        ("--image-opts", "-f", "raw", "a.q", "b"),
        ("-n", "--target-image-opts", "a.raw", "driver=qcow2,file.filename=a.q,read-only=on"),
        ("a.q", "a.q"),
    ],
)
def test_refusals(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("convert", *arguments) == 1
    _same(prepared, "a.q")


@pytest.mark.parametrize("option", ["-t", "-T"])
def test_unknown_cache_modes_are_refused(prepared: Twins, option: str) -> None:
    theirs, ours = prepared.run("convert", option, "bogus", "a.q", "b")
    assert (theirs.status, ours.status) == (1, 1)
    # qemu-img has made its target by then.
    assert "b" not in ours.files


def test_progress_on_a_pipe(prepared: Twins) -> None:
    theirs, ours = prepared.run("convert", "-p", "a.q", "b")
    for printed in (theirs.stdout, ours.stdout):
        steps = printed.replace("\n", "\r").split("\r")
        assert steps[0] == "    (0.00/100%)"
        assert steps[-3] == "    (100.00/100%)"
        assert steps[-2:] == ["", ""]
