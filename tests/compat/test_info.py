"""``info`` next to ``qemu-img info``: the text, the JSON and the exit status, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.twins import Twins

SECRET = ("--object", "secret,id=s,data=abc")

#: What to create, as ``qemu-img create`` takes it.
IMAGES: dict[str, tuple[str, ...]] = {
    "raw": ("-f", "raw", "x", "1000"),
    "raw, preallocated": ("-f", "raw", "-o", "preallocation=full", "x", "100k"),
    "qcow2": ("-f", "qcow2", "x", "10G"),
    "version 2": ("-f", "qcow2", "-o", "compat=0.10", "x", "1M"),
    "small clusters": ("-f", "qcow2", "-o", "cluster_size=512,refcount_bits=1", "x", "1M"),
    "large clusters": ("-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=64", "x", "1T"),
    "features": (
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,compression_type=zstd,lazy_refcounts=on",
        "x",
        "1M",
    ),
    "data file": ("-f", "qcow2", "-o", "data_file=d.raw", "x", "1M"),
    "raw data file": ("-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "x", "1M"),
    "backing": ("-f", "qcow2", "-b", "base.q", "-F", "qcow2", "x"),
    "backing with file:": ("-f", "qcow2", "-b", "file:base.q", "-F", "qcow2", "x"),
    "remote backing": ("-f", "qcow2", "-u", "-b", "nbd://host/x", "-F", "raw", "x", "1M"),
    "json backing": (
        "-f",
        "qcow2",
        "-u",
        "-b",
        'json:{"driver":"null-co"}',
        "-F",
        "raw",
        "x",
        "1M",
    ),
    "LUKS": (
        *SECRET,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "x",
        "1M",
    ),
    "LUKS, other ciphers, data file and backing": (
        *SECRET,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.ivgen-alg=essiv,"
        "encrypt.ivgen-hash-alg=sha256,encrypt.cipher-mode=cbc,encrypt.cipher-alg=aes-128,"
        "encrypt.hash-alg=sha512,data_file=d.raw,backing_file=base.q,backing_fmt=qcow2",
        "x",
        "1M",
    ),
    "AES": (
        *SECRET,
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s,compat=0.10",
        "x",
        "1M",
    ),
}


def _patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture(autouse=True)
def shared(twins: Twins) -> None:
    twins.shared = True


@pytest.fixture
def based(twins: Twins) -> Twins:
    twins.img("create", "-q", "-f", "qcow2", "base.q", "2M")
    return twins


@pytest.mark.parametrize("arguments", IMAGES.values(), ids=IMAGES)
def test_images(based: Twins, arguments: tuple[str, ...]) -> None:
    based.img("create", "-q", *arguments)
    for output in ("human", "json"):
        assert based.alike("info", f"--output={output}", "x") == 0


@pytest.mark.parametrize("output", ["human", "json"])
def test_snapshots(twins: Twins, output: str) -> None:
    twins.img("create", "-q", "-f", "qcow2", "x", "1M")
    for name in ("s1", "a long name, longer than its column"):
        twins.img("snapshot", "-c", name, "x")
    assert twins.alike("info", f"--output={output}", "x") == 0
    path = twins.qemu / "x"
    table = int.from_bytes(path.read_bytes()[64:72], "big")
    _patch(path, table + 24, (123456789012345678).to_bytes(8, "big"))  # guest time
    _patch(path, table + 40, (5 << 20).to_bytes(8, "big"))  # VM state
    _patch(path, table + 56, b"\xff" * 8)  # no instruction count
    assert twins.alike("info", f"--output={output}", "x") == 0


@pytest.mark.parametrize("output", ["human", "json"])
def test_bitmaps(twins: Twins, output: str) -> None:
    twins.img("create", "-q", "-f", "qcow2", "x", "1M")
    twins.img("bitmap", "--add", "x", "first")
    twins.img("bitmap", "--add", "--disable", "-g", "4k", "x", "with space")
    twins.img("bitmap", "--add", "x", "in use")
    assert twins.alike("info", f"--output={output}", "x") == 0
    path = twins.qemu / "x"
    entry = path.read_bytes().rfind(b"in use") - 24
    _patch(path, entry + 12, (3).to_bytes(4, "big"))
    assert twins.alike("info", f"--output={output}", "x") == 0


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_dirty_and_corrupt(twins: Twins, bits: int, output: str) -> None:
    twins.img("create", "-q", "-f", "qcow2", "x", "1M")
    _patch(twins.qemu / "x", 79, bytes((bits,)))
    assert twins.alike("info", f"--output={output}", "x") == 0


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("name", ["sub/top.q", "./sub/top.q", "sub//top.q", "file:sub/top.q"])
def test_chains(based: Twins, name: str, output: str) -> None:
    (based.qemu / "sub").mkdir()
    based.img("create", "-q", "-f", "qcow2", "-b", "../base.q", "-F", "qcow2", "sub/mid.q")
    based.img("create", "-q", "-f", "qcow2", "-b", "mid.q", "-F", "qcow2", "sub/top.q", "3M")
    assert based.alike("info", f"--output={output}", name) == 0
    arguments = ("info", "--backing-chain", f"--output={output}", name)
    theirs, ours = based.run(*arguments)
    # base.q lies outside the directory of the image that names it.
    assert (theirs.status, ours.status, ours.stdout) == (0, 1, "")
    based.extra = ("--trust",)
    assert based.alike(*arguments) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--image-opts", "driver=qcow2,file.filename=x"),
        ("--image-opts", "file.filename=x"),
        ("--image-opts", "driver=qcow2,file.driver=file,file.filename=x,lazy-refcounts=off"),
        ("--image-opts", "driver=qcow2,file.filename=x,cache.direct=on,file.locking=off"),
        ("--image-opts", "driver=raw,offset=512,file.filename=x"),
        ("--image-opts", "driver=raw,offset=512,size=1k,file.filename=x"),
        ("-f", "raw", "x"),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}',),
        ('json:{"driver":"qcow2","file.filename":"x","backing":null}',),
        ('json:{"driver":"raw","size":"1k","offset":512,"file":{"driver":"file","filename":"x"}}',),
        ("-U", "x"),
    ],
)
@pytest.mark.parametrize("output", ["human", "json"])
def test_names(based: Twins, arguments: tuple[str, ...], output: str) -> None:
    based.img("create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "x")
    assert based.alike("info", f"--output={output}", *arguments) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nope",),
        ("--bogus", "x"),
        ("--output=xml", "x"),
        ("-f", "bogus", "x"),
        ("-f", "qcow2", "base.raw"),
        ("--image-opts", "x"),
        ("--image-opts", "driver=qcow2"),
        ("--image-opts", "filename=x"),
        ("--image-opts", "driver=qcow2,file.filename=x,bogus=1"),
        ("--image-opts", "driver=qcow2,file.filename=x,file.bogus=1"),
        ("--image-opts", "-f", "qcow2", "driver=qcow2,file.filename=x"),
        ("--image-opts", "driver=raw,offset=1G,file.filename=x"),
        ("json:{nonsense",),
        ("json:[]",),
        ("sub",),
    ],
)
def test_refusals(twins: Twins, arguments: tuple[str, ...]) -> None:
    twins.img("create", "-q", "-f", "qcow2", "x", "1M")
    (twins.qemu / "base.raw").write_bytes(bytes(512))
    (twins.qemu / "sub").mkdir()
    assert twins.alike("info", *arguments) == 1


def test_names_in_json(twins: Twins) -> None:
    for name in ("é.raw", "a\\b.raw", "a\nb\t\x01\x7f.raw", 'a"b.raw', "😀.raw", "a\udcffb.raw"):
        (twins.qemu / name).write_bytes(bytes(512))
        assert twins.alike("info", "--output=json", name) == 0
