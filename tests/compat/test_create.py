"""``create`` next to ``qemu-img create``: output, exit status, and what the images are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import imgtool
from tests.compat.twins import Twins
from tests.kit.tools import require_tool

OPTIONS = [
    "compat=0.10",
    "compat=v2",
    "compat=v3",
    "compat=1.1,cluster_size=512",
    "cluster_size=4k,refcount_bits=8",
    "cluster_size=2M,refcount_bits=64",
    "refcount_bits=1",
    "refcount_bits=0x10",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,compression_type=zstd,lazy_refcounts=on,nocow=on",
    "lazy_refcounts",
    "nolazy_refcounts",
    "lazy_refcounts=yes",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,refcount_bits=32",
    "preallocation=metadata,extended_l2=on",
    "data_file=d.raw",
    "data_file=file:d.raw",
    "data_file=d.raw,data_file_raw=on",
    "data_file=d.raw,preallocation=full",
    "backing_file=base.q,backing_fmt=qcow2",
    "backing_file=a,,b.raw,backing_fmt=raw,cluster_size=2M",
    "backing_file=base.q,backing_fmt=qcow2,data_file=d.raw,data_file_raw=off",
    "backing_file=base.q,backing_fmt=qcow2,extended_l2=on,preallocation=metadata",
]

REFUSED = [
    "cluster_size=3",
    "cluster_size=4M",
    "cluster_size=1Q",
    "compat=foo",
    "refcount_bits=3",
    "refcount_bits=-1",
    "refcount_bits=x",
    "lazy_refcounts=maybe",
    "compression_type=foo",
    "bogus=1",
    "nobogus",
    "compat=0.10,lazy_refcounts=on",
    "compat=0.10,refcount_bits=8",
    "compat=0.10,compression_type=zstd",
    "compat=0.10,extended_l2=on",
    "compat=0.10,data_file=d.raw",
    "extended_l2=on,cluster_size=8k",
    "data_file_raw=on",
    "data_file=nodir/d.raw",
    "data_file=d.raw,data_file_raw=on,backing_file=base.q,backing_fmt=qcow2",
    "backing_file=base.q",
    "backing_file=base.q,backing_fmt=qcow2,preallocation=metadata",
    "size=2M",
    "compat=v3,",
    ",",
    "",
]

BACKING = [
    ("-b", "base.q", "-F", "qcow2", "x.q"),
    ("-b", "base.q", "-F", "qcow2", "x.q", "1M"),
    ("-b", "base.q", "-F", "qcow2", "x.q", "1G"),
    ("-b", "file:base.q", "-F", "qcow2", "x.q"),
    ("-b", "../base.q", "-F", "qcow2", "sub/x.q"),
    ("-b", "base.q", "-F", "raw", "x.q"),
    ("-b", "base.q", "-F", "qcow2", "-o", "backing_file=nope", "x.q"),
    ("-u", "-b", "nope", "-F", "vmdk", "x.q", "1M"),
    ("-u", "-b", "nbd://host/x", "-F", "raw", "x.q", "1M"),
]

BACKING_REFUSED = [
    ("-b", "base.q", "x.q"),
    ("-b", "nope", "-F", "qcow2", "x.q"),
    ("-b", "nope", "x.q", "1M"),
    ("-b", "a,b.raw", "-F", "qcow2", "x.q"),
    ("-b", "base.q", "-F", "qcow2", "sub/x.q"),
    ("-b", "base.q", "-F", "bogus", "x.q"),
    ("-b", "base.q", "-F", "qcow2", "base.q"),
    ("-b", "", "-F", "raw", "x.q", "1M"),
    ("-u", "-b", "nope", "-F", "qcow2", "x.q"),
    ("-u", "-b", "nope", "x.q", "1M"),
]


@pytest.fixture
def prepared(twins: Twins) -> Twins:
    twins.img("create", "-q", "-f", "qcow2", "base.q", "2M")
    (twins.qemu / "a,b.raw").write_bytes(bytes(1 << 20))
    (twins.qemu / "sub").mkdir()
    return twins


def _same_images(twins: Twins, *names: str) -> None:
    """Require that both made images of the same properties, and that ours is sound."""
    for name in names:
        facts = []
        for base in (twins.qemu, twins.imgtool):
            found = imgtool.info(str(base / name)).to_dict()
            # The directories differ, and how much of the tables is stored is each one's own affair.
            for changing in ("filename", "full-backing-filename", "actual-size", "children"):
                found.pop(changing, None)
            facts.append(found)
        assert facts[0] == facts[1]
        if facts[1]["format"] == "qcow2":
            _checked(twins.imgtool / name)


def _checked(path: Path) -> None:
    done = subprocess.run(
        [require_tool("qemu-img"), "check", "-q", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("options", OPTIONS)
def test_options(prepared: Twins, options: str) -> None:
    assert prepared.alike("create", "-f", "qcow2", "-o", options, "x.q", "1M") == 0
    _same_images(prepared, "x.q")
    if "data_file" in options:
        sizes = [(base / "d.raw").stat().st_size for base in (prepared.qemu, prepared.imgtool)]
        assert sizes[0] == sizes[1]


@pytest.mark.parametrize("options", REFUSED)
def test_refused_options(prepared: Twins, options: str) -> None:
    assert prepared.alike("create", "-f", "qcow2", "-o", options, "x.q", "1M") == 1


@pytest.mark.parametrize("arguments", BACKING)
def test_backing_files(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("create", "-f", "qcow2", *arguments) == 0
    name = next(argument for argument in arguments if argument.endswith("x.q"))
    if "-u" not in arguments and "raw" not in arguments:
        _same_images(prepared, name)


@pytest.mark.parametrize("arguments", BACKING_REFUSED)
def test_refused_backing_files(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("create", "-f", "qcow2", *arguments) == 1


@pytest.mark.parametrize("size", ["0", "1000", "512", "1.5k", "0x400", "10G", "1001b", "3m"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_sizes(twins: Twins, format: str, size: str) -> None:
    assert twins.alike("create", "-f", format, "x.img", size) == 0
    _same_images(twins, "x.img")


@pytest.mark.parametrize(
    "arguments",
    [
        ("x.raw", "8E"),
        ("x.raw", "1KiB"),
        ("x.raw", "1Q"),
        ("x.raw",),
        ("-f", "qcow2", "x.q", "64P"),
        ("-f", "bogus", "x.q", "1M"),
        ("x.raw", "1k", "extra"),
        ("-b", "base.q", "-F", "qcow2", "x.raw"),
        ("nodir/x.raw", "1M"),
        ("-f", "qcow2", "nodir/x.q", "1M"),
        ("sub", "1M"),
        (),
    ],
)
def test_refused_requests(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("create", *arguments) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "size=1M", "x.raw"),
        ("-o", "preallocation=full", "x.raw", "1M"),
        ("-o", "preallocation=falloc,nocow=on", "x.raw", "1M"),
        ("-o", "extent_size_hint=2M,preallocation=full", "x.raw", "1M"),
        ("-f", "qcow2", "-o", "extent_size_hint=0", "x.q", "1M"),
        ("-o", "help", "x.raw"),
        ("file:x.raw", "1M"),
        ("-f", "qcow2", "-q", "x.q", "1M"),
        ("-fqcow2", "-ocluster_size=4k", "-o", "refcount_bits=8", "x.q", "1M"),
        ("-o", "help"),
        ("-f", "raw", "-o", "?"),
    ],
)
def test_other_requests(twins: Twins, arguments: tuple[str, ...]) -> None:
    assert twins.alike("create", *arguments) == 0


def test_option_help(twins: Twins) -> None:
    for arguments in (("-f", "qcow2", "-o", "help"), ("-f", "qcow2", "-o", "help", "x.q")):
        theirs, ours = twins.run("create", *arguments)
        # imgtool leaves extents to the file system, and encrypts with LUKS alone.
        lacking = ("  encrypt.", "  encryption=", "  extent_size_hint")
        wanted, found = (
            [line for line in done.stdout.splitlines() if not line.startswith(lacking)]
            for done in (theirs, ours)
        )
        assert found == wanted
        assert "encrypt.key-secret" in ours.stdout
        assert ours.status == 0
