"""Encrypted images next to QEMU: each reads what the other wrote, and tells the same of it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import imgtool
from imgtool.errors import BadOption, ImageError, ReadOnly
from tests.compat.twins import Twins
from tests.kit import referee
from tests.kit.contract import Content, ReadContract, render
from tests.kit.oracle import OracleDisk
from tests.kit.write_contract import WriteContract

PASSWORD = "correct horse"
OBJECT = ("--object", f"secret,id=s,data={PASSWORD}")
LUKS = "key-secret=s,iter-time=1"
QCOW2 = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
AES = "encrypt.format=aes,encrypt.key-secret=s"

_NOISE = random.Random(5).randbytes(1 << 20)


def node(path: Path | str, format: str, secret: str = "s") -> str:
    """What ``--image-opts`` calls an encrypted image."""
    name = "key-secret" if format == "luks" else "encrypt.key-secret"
    return f"driver={format},{name}={secret},file.filename={path}"


def encrypt(raw: Path, image: Path, format: str, options: str) -> None:
    """``qemu-img convert`` into a new encrypted image."""
    arguments = ("convert", *OBJECT, "-f", "raw", "-O", format, "-o", options)
    referee.must("qemu-img", *arguments, raw, image)


def decrypt(image: Path, format: str) -> bytes:
    """What QEMU reads from an encrypted image."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "raw"
        arguments = ("convert", *OBJECT, "--image-opts", "-O", "raw", node(image, format))
        referee.must("qemu-img", *arguments, target)
        return target.read_bytes()


def check(image: Path) -> None:
    """Require that QEMU finds nothing wrong with an encrypted qcow2 image."""
    referee.must("qemu-img", "check", "-q", *OBJECT, "--image-opts", node(image, "qcow2"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "content.raw"
    path.write_bytes(_NOISE[:300_032] + bytes(500_224) + _NOISE[:100_352])
    return path


class TestQemuImages(ReadContract):
    """qcow2 images that QEMU encrypted."""

    format = "qcow2"
    password = PASSWORD
    option_sets: ClassVar = {
        "luks": {"options": QCOW2},
        "luks, small clusters": {"options": f"{QCOW2},cluster_size=512"},
        "luks, cbc": {"options": f"{QCOW2},encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv"},
        "luks, data file": {"options": QCOW2, "data_file": True},
        "aes": {"options": AES},
        "aes, large clusters": {"options": f"{AES},cluster_size=2M"},
    }

    def make(self, folder: Path, content: Content, size: int, options: Mapping[str, Any]) -> Path:
        image, raw = folder / "disk.qcow2", folder / "content.raw"
        raw.write_bytes(render(content, size))
        outside = f",data_file={folder / 'disk.data'}" if options.get("data_file") else ""
        encrypt(raw, image, "qcow2", options["options"] + outside)
        return image


class TestWriting(WriteContract):
    """Writing to qcow2 images that QEMU encrypted, judged by QEMU."""

    format = "qcow2"
    password = PASSWORD
    option_sets: ClassVar = {
        "luks": {},
        "small clusters": {"cluster_size": 512},
        "extended": {"extended_l2": True},
        "backed": {"backed": True, "cluster_size": 8192},
    }

    def make(self, folder: Path, size: int, options: Mapping[str, Any]) -> tuple[Path, bytes]:
        image, raw = folder / "disk.qcow2", folder / "base.raw"
        content = bytes(size)
        chosen = dict(options)
        below: list[str] = []
        if chosen.pop("backed", False):
            content = (b"before it was written to\n" * (size // 25 + 1))[:size]
            raw.write_bytes(content)
            below = ["-b", str(raw), "-F", "raw"]
        words = [f"{name}={value}".replace("True", "on") for name, value in chosen.items()]
        arguments = ("create", "-q", *OBJECT, "-f", "qcow2", "-o", ",".join([QCOW2, *words]))
        referee.must("qemu-img", *arguments, *below, image, str(size))
        return image, content

    def judge(self, path: Path, oracle: OracleDisk) -> None:
        check(path)
        assert oracle.agrees(decrypt(path, "qcow2"))


# Ciphers

_CIPHERS = [
    "",
    "cipher-alg=aes-128",
    "cipher-alg=aes-192",
    "cipher-mode=cbc",
    "cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-mode=ctr",
    "cipher-mode=ctr,ivgen-alg=essiv",
    "cipher-mode=ecb",
    "ivgen-alg=plain",
    "ivgen-alg=essiv",
    "cipher-alg=aes-128,ivgen-alg=essiv,ivgen-hash-alg=md5",
    "ivgen-hash-alg=sha256",
    "hash-alg=sha1",
    "hash-alg=sha512",
    "cipher-alg=cast5-128,cipher-mode=cbc",
    "cipher-alg=cast5-128,cipher-mode=ctr,ivgen-alg=essiv,ivgen-hash-alg=md5",
]


@pytest.mark.parametrize("cipher", _CIPHERS)
def test_ciphers(raw: Path, tmp_path: Path, cipher: str) -> None:
    content = raw.read_bytes()
    theirs, ours = tmp_path / "theirs.luks", tmp_path / "ours.luks"
    encrypt(raw, theirs, "luks", f"{LUKS},{cipher}".rstrip(","))
    with imgtool.open(theirs, writable=True, password=PASSWORD) as disk:
        assert disk.read_at(0, disk.size) == content
        disk.write_at(1000, _NOISE[:5000])
    assert decrypt(theirs, "luks") == content[:1000] + _NOISE[:5000] + content[6000:]
    chosen = dict(part.split("=") for part in cipher.split(",") if part)
    imgtool.convert(
        raw, ours, source_format="raw", target_password=PASSWORD, **{"iter-time": 1, **chosen}
    )
    assert decrypt(ours, "luks") == content
    assert imgtool.info(ours).format_specific.keys() == imgtool.info(theirs).format_specific.keys()


def test_what_cryptography_lacks(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "x.luks"
    encrypt(raw, image, "luks", f"{LUKS},cipher-alg=serpent-256")
    with pytest.raises(ImageError, match=r"serpent-256, which the package 'cryptography' does not"):
        imgtool.open(image, password=PASSWORD)
    assert imgtool.info(image).format_specific["cipher-alg"] == "serpent-256"


@pytest.mark.parametrize(
    "more",
    [
        "",
        ",compat=0.10",
        ",cluster_size=512",
        ",cluster_size=2M,encrypt.cipher-alg=aes-128",
        ",extended_l2=on,encrypt.cipher-mode=cbc",
        ",refcount_bits=1",
        ",preallocation=metadata",
        ",preallocation=falloc",
        ",preallocation=full",
    ],
)
def test_qcow2_of_every_kind(twins: Twins, raw: Path, more: str) -> None:
    raw.rename(twins.qemu / "a.raw")
    arguments = ("convert", *OBJECT, "-f", "raw", "-O", "qcow2", "-o", QCOW2 + more)
    assert twins.alike(*arguments, "a.raw", "x.q") == 0
    expected = (twins.qemu / "a.raw").read_bytes()
    for image in (twins.qemu / "x.q", twins.imgtool / "x.q"):
        check(image)
        assert decrypt(image, "qcow2") == expected
        with imgtool.open(image, password=PASSWORD) as disk:
            assert disk.read_at(0, disk.size) == expected
        assert imgtool.check(image).clean


def test_a_new_image_reads_as_zeros(tmp_path: Path) -> None:
    for number, preallocation in enumerate(("off", "falloc", "full")):
        image = tmp_path / f"{number}.qcow2"
        options = {"preallocation": preallocation, "encrypt_iter_time": 1}
        imgtool.create(image, "1M", password=PASSWORD, **options)
        assert decrypt(image, "qcow2") == bytes(1 << 20)


# The same output

_CREATE = [
    ("-f", "luks", "-o", LUKS, "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},cipher-alg=aes-128,hash-alg=sha1", "x", "1024"),
    ("-f", "luks", "-o", f"{LUKS},preallocation=full,nocow=on,size=1M", "x"),
    ("-f", "luks", "-o", "key-secret=s,iter-time=0", "x", "0"),
    ("-f", "qcow2", "-o", QCOW2, "x", "1M"),
    ("-f", "qcow2", "-o", f"encryption=off,cluster_size=4k,{QCOW2}", "x", "1M"),
    ("-f", "qcow2", "-o", f"{QCOW2},encrypt.cipher-mode=cbc,compat=v2", "x", "1M"),
]
_REFUSED = [
    ("-f", "luks", "x", "1M"),
    ("-f", "luks", "-o", LUKS, "x"),
    ("-f", "luks", "-o", f"{LUKS},cipher-alg=rot13", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},cipher-alg=des", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},cipher-mode=cfb", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},cipher-alg=cast5-128", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},hash-alg=crc32", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},ivgen-alg=essiv,ivgen-hash-alg=sha1", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},bogus=1", "x", "1M"),
    ("-f", "luks", "-o", f"{LUKS},iter-time=x", "x", "1M"),
    ("-f", "luks", "-o", LUKS, "-b", "y", "-F", "raw", "x", "1M"),
    ("-f", "qcow2", "-o", "encrypt.format=luks", "x", "1M"),
    ("-f", "qcow2", "-o", "encrypt.key-secret=s", "x", "1M"),
    ("-f", "qcow2", "-o", "encrypt.format=rot13,encrypt.key-secret=s", "x", "1M"),
    ("-f", "qcow2", "-o", f"encryption=on,{QCOW2}", "x", "1M"),
    ("-f", "qcow2", "-o", f"{QCOW2},encrypt.cipher-alg=rot13", "x", "1M"),
]


@pytest.mark.parametrize("arguments", _CREATE)
def test_creating(twins: Twins, arguments: tuple[str, ...]) -> None:
    assert twins.alike("create", *OBJECT, *arguments) == 0
    facts = []
    for directory in (twins.qemu, twins.imgtool):
        found = imgtool.info(directory / "x").to_dict()
        specific = found["format-specific"]["data"]
        specific = specific.get("encrypt", specific)
        for random_or_timed in ("uuid", "master-key-iters"):
            specific.pop(random_or_timed)
        for slot in specific["slots"]:
            slot.pop("iters", None)
        for name in ("filename", "actual-size", "children"):
            found.pop(name)
        facts.append(found)
    assert facts[0] == facts[1]
    length = [(directory / "x").stat().st_size for directory in (twins.qemu, twins.imgtool)]
    assert "qcow2" in arguments or length[0] == length[1]


@pytest.mark.parametrize("arguments", _REFUSED)
def test_refused_creations(twins: Twins, arguments: tuple[str, ...]) -> None:
    assert twins.alike("create", *OBJECT, *arguments) == 1


def test_unknown_secrets(twins: Twins) -> None:
    theirs, ours = twins.run("create", "-f", "luks", "-o", "key-secret=t", "x", "1M")
    assert (theirs.status, ours.status) == (1, 1)
    assert ours.files == theirs.files


def test_option_help(twins: Twins) -> None:
    for kind in ("luks", "qcow2"):
        for more in ((), ("x",)):
            theirs, ours = twins.run("create", "-f", kind, "-o", "help", *more)
            wanted = [line for line in theirs.stdout.splitlines() if not _differs(line)]
            assert [line for line in ours.stdout.splitlines() if not _differs(line)] == wanted


def _differs(line: str) -> bool:
    # Headers apart from their payload are not made, nor is the old AES, nor XFS's hint given.
    lacking = ("detached-header", "extent_size_hint", "encrypt.format", "encryption=")
    return line.startswith(tuple("  " + name for name in lacking)) or "encrypt.key-secret" in line


@pytest.fixture
def images(twins: Twins, raw: Path) -> Twins:
    """An encrypted image of each format, for commands that change nothing."""
    twins.shared = True
    encrypt(raw, twins.qemu / "x.luks", "luks", LUKS)
    encrypt(raw, twins.qemu / "x.q", "qcow2", QCOW2)
    encrypt(raw, twins.qemu / "aes.q", "qcow2", AES)
    raw.rename(twins.qemu / "a.raw")
    return twins


_NODES = [node("x.luks", "luks"), node("x.q", "qcow2"), node("aes.q", "qcow2")]


@pytest.mark.parametrize("name", _NODES)
@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("info", "--output=json"),
        ("map", "--output=json"),
        ("check",),
        ("measure", "-O", "raw"),
        ("measure", "-O", "qcow2"),
        ("measure", "-O", "luks", "-o", LUKS),
        ("measure", "-O", "qcow2", "-o", f"{QCOW2},cluster_size=512"),
    ],
)
def test_commands(images: Twins, arguments: tuple[str, ...], name: str) -> None:
    images.alike(arguments[0], *OBJECT, *arguments[1:], "--image-opts", name)


@pytest.mark.parametrize("name", _NODES)
def test_comparing(images: Twins, name: str) -> None:
    for other in [*_NODES, "driver=raw,file.filename=a.raw"]:
        assert images.alike("compare", *OBJECT, "--image-opts", name, other) == 0


@pytest.mark.parametrize("name", _NODES)
def test_no_map_for_people(images: Twins, name: str) -> None:
    assert images.alike("map", *OBJECT, "--image-opts", name) == 1


@pytest.mark.parametrize("size", ["0", "512", "1M", "1G", "1T"])
@pytest.mark.parametrize("more", ["", ",encrypt.cipher-alg=aes-128", ",cluster_size=2M"])
def test_measuring_sizes(twins: Twins, size: str, more: str) -> None:
    twins.alike("measure", *OBJECT, "-O", "qcow2", "-o", QCOW2 + more, "--size", size)
    if "cluster" not in more:
        plain = LUKS + more.replace("encrypt.", "")
        twins.alike("measure", *OBJECT, "-O", "luks", "-o", plain, "--size", size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("map", "x.luks"), "Could not open 'x.luks': Parameter 'key-secret' is required"),
        (("map", "x.q"), "Could not open 'x.q': Parameter 'encrypt.key-secret' is required"),
        (("convert", "aes.q", "y"), "'aes.q': Parameter 'encrypt.key-secret' is required"),
        (("map", "--image-opts", node("x.luks", "luks", "t")), "No secret with id 't'"),
        (("map", "--image-opts", node("x.luks", "luks")), "cannot unlock any keyslot"),
        (("map", "--image-opts", node("x.q", "qcow2")), "cannot unlock any keyslot"),
        (
            ("map", "--image-opts", f"{node('x.q', 'qcow2')},encrypt.format=aes"),
            "Header reported 'luks' encryption format but options specify 'aes'",
        ),
        (
            ("map", "--image-opts", "driver=qcow2,encrypt.format=luks,file.filename=plain.q"),
            "No encryption in image header, but options specified format 'luks'",
        ),
    ],
)
def test_refusals(
    images: Twins, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    from imgtool.cli.main import run

    images.img("create", "-q", "-f", "qcow2", "plain.q", "1M")
    wrong = ("--object", "secret,id=s,data=topsecret")
    assert images.alike(arguments[0], *wrong, *arguments[1:]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images.qemu)
        assert run((arguments[0], *wrong, *arguments[1:])) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert "topsecret" not in told


# From each to each


@pytest.mark.parametrize("target", ["luks", "qcow2", "raw"])
@pytest.mark.parametrize("source", ["luks", "qcow2", "aes"])
def test_converting(images: Twins, source: str, target: str) -> None:
    name = _NODES[("luks", "qcow2", "aes").index(source)]
    wanted = {"luks": ("-o", LUKS), "qcow2": ("-o", QCOW2), "raw": ()}[target]
    theirs, ours = images.run(
        "convert", *OBJECT, "--image-opts", "-O", target, *wanted, name, "out"
    )
    assert theirs == ours
    result = images.qemu / "out"
    found = result.read_bytes() if target == "raw" else decrypt(result, target)
    assert found == (images.qemu / "a.raw").read_bytes()


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_into_what_exists(images: Twins, format: str) -> None:
    """The target was full of other data; where the source has zeros it must have them, too."""
    name = node("there", format)
    options = LUKS if format == "luks" else QCOW2
    images.img("create", "-q", *OBJECT, "-f", format, "-o", options, "there", "1M")
    images.io(*OBJECT, "--image-opts", name, "-c", "write -P 7 0 1M")
    arguments = ("convert", *OBJECT, "-n", "--target-image-opts", "a.raw", name)
    theirs, ours = images.run(*arguments)
    assert theirs == ours
    expected = (images.qemu / "a.raw").read_bytes()
    assert decrypt(images.qemu / "there", format) == expected.ljust(1 << 20, b"\7")


def test_encrypted_chains(images: Twins) -> None:
    """Every image of a chain has a password of its own."""
    images.img("create", "-q", *OBJECT, "-f", "qcow2", "-b", "x.q", "-F", "qcow2", "mid.q")
    second = ("--object", "secret,id=t,data=another")
    options = QCOW2.replace("secret=s", "secret=t")
    images.img(
        "create", "-q", *OBJECT, *second, "-f", "qcow2", "-o", options, "-b", "mid.q", "-F",
        "qcow2", "top.q",
    )  # fmt: skip
    name = (
        "driver=qcow2,encrypt.key-secret=t,backing.backing.encrypt.key-secret=s,file.filename=top.q"
    )
    images.io(*OBJECT, *second, "--image-opts", name, "-c", "write -P 9 1000 100")
    both = (*OBJECT, *second, "--image-opts")
    assert images.alike("map", *both, "--output=json", name) == 0
    theirs, ours = images.run("convert", *both, "-O", "raw", name, "out")
    assert theirs == ours
    expected = bytearray((images.qemu / "a.raw").read_bytes())
    expected[1000:1100] = bytes([9]) * 100
    assert (images.qemu / "out").read_bytes() == expected


# Changing images


def test_everything_that_changes_an_image(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "x.q"
    encrypt(raw, image, "qcow2", QCOW2)
    expected = bytearray(raw.read_bytes())
    imgtool.create_snapshot(image, "before", password=PASSWORD)
    with imgtool.open(image, writable=True, password=PASSWORD) as disk:
        disk.write_at(65_000, _NOISE[:70_000])
        disk.write_zeroes(200_000, 300_000)
    changed = bytearray(expected)
    changed[65_000:135_000] = _NOISE[:70_000]
    changed[200_000:500_000] = bytes(300_000)
    check(image)
    assert decrypt(image, "qcow2") == changed
    with imgtool.open(image, snapshot="before", password=PASSWORD) as disk:
        assert disk.read_at(0, disk.size) == expected
    imgtool.resize(image, "+1M", password=PASSWORD)
    check(image)
    assert decrypt(image, "qcow2") == changed + bytes(1 << 20)
    imgtool.apply_snapshot(image, "before", password=PASSWORD)
    check(image)
    assert decrypt(image, "qcow2") == expected
    imgtool.delete_snapshot(image, "before", password=PASSWORD)
    imgtool.amend(image, compat="v3", refcount_bits=32, password=PASSWORD)
    imgtool.bitmap(image, "dirty", "add", password=PASSWORD)
    check(image)
    assert decrypt(image, "qcow2") == expected


def test_committing_and_rebasing(raw: Path, tmp_path: Path) -> None:
    base, top, other = tmp_path / "base.q", tmp_path / "top.q", tmp_path / "other.q"
    encrypt(raw, base, "qcow2", QCOW2)
    encrypt(raw, other, "qcow2", QCOW2)
    imgtool.create(
        top,
        format="qcow2",
        backing_file="base.q",
        backing_format="qcow2",
        password=PASSWORD,
        encrypt_iter_time=1,
    )
    expected = bytearray(raw.read_bytes())
    with imgtool.open(top, writable=True, password=PASSWORD) as disk:
        disk.write_at(700_001, b"on top")
    expected[700_001:700_007] = b"on top"
    with imgtool.open(other, writable=True, password=PASSWORD) as disk:
        disk.write_at(5000, b"only there")
    imgtool.rebase(top, "other.q", "qcow2", password=PASSWORD)
    with imgtool.open(top, password=PASSWORD) as disk:
        assert disk.read_at(0, disk.size) == expected
    imgtool.commit(top, password=PASSWORD)
    for image in (top, other):
        check_offline = imgtool.check(image)
        assert check_offline.clean
    check(other)
    assert decrypt(other, "qcow2") == expected
    imgtool.rebase(top, None, password=PASSWORD)
    check(top)
    assert decrypt(top, "qcow2") == expected


def test_old_aes_is_only_read(images: Twins) -> None:
    path = images.qemu / "aes.q"
    with pytest.raises(ReadOnly, match=r"encrypt\.format=luks"):
        imgtool.open(path, writable=True, password=PASSWORD)
    with pytest.raises(BadOption, match=r"encrypt\.format=luks"):
        imgtool.create(
            images.qemu / "y.q", "1M", format="qcow2", encrypt_format="aes", password=PASSWORD
        )
    # Nothing in the image tells a wrong password.
    with imgtool.open(path, password="wrong") as disk:
        assert disk.read_at(0, 512) != _NOISE[:512]
    assert imgtool.check(path).clean


@pytest.mark.parametrize("password", ["short", "sixteen bytes ok", "longer than sixteen bytes"])
def test_old_aes_keys(images: Twins, password: str) -> None:
    """The password is the key, cut off or filled up to sixteen bytes."""
    secret = ("--object", f"secret,id=s,data={password}")
    images.img("convert", *secret, "-O", "qcow2", "-o", AES, "a.raw", "y.q")
    with imgtool.open(images.qemu / "y.q", password=password) as disk:
        assert disk.read_at(1, 5000) == _NOISE[1:5001]


def test_compression_is_refused(images: Twins) -> None:
    arguments = ("convert", *OBJECT, "-c", "-O", "qcow2", "-o", QCOW2, "a.raw", "y.q")
    assert images.alike(*arguments) == 1
    with pytest.raises(BadOption, match="Compression and encryption"):
        imgtool.convert(
            images.qemu / "a.raw", images.qemu / "x.q", format="qcow2", create=False,
            compress=True, target_password=PASSWORD,
        )  # fmt: skip
