"""``dd`` next to qemu-img's: what is refused, and what the new image then holds."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.compat.twins import Twins
from tests.kit.tools import require_tool

_SIZE = 51200


@pytest.fixture
def prepared(twins: Twins) -> Twins:
    """Noise in a.raw and a.q, and a raw file that ends within a sector."""
    noise = random.Random(5).randbytes(_SIZE)
    (twins.qemu / "a.raw").write_bytes(noise)
    (twins.qemu / "odd.raw").write_bytes(noise[:1025])
    twins.img("convert", "-f", "raw", "-O", "qcow2", "-c", "a.raw", "a.q")
    return twins


def _same(twins: Twins, name: str) -> None:
    done = subprocess.run(
        [require_tool("qemu-img"), "compare", "-s", f"qemu/{name}", f"imgtool/{name}"],
        cwd=twins.base,
        capture_output=True,
        text=True,
        check=False,
    )
    # Zeros that are stored or not are all that may differ, and exit with 1 as well.
    assert "Content" not in done.stdout, done.stdout
    assert "size" not in done.stdout, done.stdout
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("if=a.raw", "of=b"),
        ("if=odd.raw", "of=b"),
        ("if=a.q", "of=b", "-f", "qcow2", "-O", "raw", "-U"),
        ("-O", "qcow2", "if=a.q", "of=b", "bs=700", "count=3"),
        ("-f", "raw", "if=a.q", "of=b", "bs=64k"),
        ("--image-opts", "if=driver=qcow2,file.filename=a.q", "of=b", "bs=1k", "skip=3"),
        ("if=a.raw", "of=b", "bs=1k", "count=3"),
        ("if=a.raw", "of=b", "bs=1k", "skip=2"),
        ("if=a.q", "of=b", "bs=1k", "skip=2", "count=3"),
        ("if=a.raw", "of=b", "bs=1000", "skip=3", "count=7"),
        ("if=a.q", "of=b", "bs=1000", "skip=51"),
        ("if=a.q", "of=b", "bs=1.5k", "count=1"),
        ("if=a.raw", "of=b", "count=0"),
        ("if=a.raw", "of=b", "skip=100"),
        ("if=a.raw", "of=b", "skip=101"),
        ("if=a.raw", "of=b", "count=1000", "skip=90"),
        ("if=a.raw", "of=b", "count=010", "skip=0x2"),
        ("if=a.raw", "of=b", "bs=2147483647", "count=9223372036854775807"),
        ("if=nope", "if=a.raw", "of=c", "of=b", "bs=1k", "bs=2k", "count=1"),
        ("if=a.q", "of=a.raw", "count=3"),
    ],
)
def test_copies(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("dd", *arguments) == 0
    _same(prepared, "b" if "of=b" in arguments else "a.raw")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("if=a.raw",),
        ("of=b",),
        ("if=a.raw", "of=b", "bogus=1"),
        ("if=a.raw", "of=b", "bogus"),
        ("if=a.raw", "of=b", "seek=1"),
        ("if=a.raw", "of=b", "conv=notrunc"),
        ("if=a.raw", "of=b", "bs=0"),
        ("if=a.raw", "of=b", "bs=x"),
        ("if=a.raw", "of=b", "bs="),
        ("if=a.raw", "of=b", "bs=2G"),
        ("if=a.raw", "of=b", "bs=1E"),
        ("if=a.raw", "of=b", "count=x"),
        ("if=a.raw", "of=b", "count=1k"),
        ("if=a.raw", "of=b", "count=1.5"),
        ("if=a.raw", "of=b", "count=-1"),
        ("if=a.raw", "of=b", "skip=-1"),
        ("if=a.raw", "of=b", "skip=1E"),
        ("if=nope", "of=b"),
        ("if=", "of=b"),
        ("if=a.raw", "of=nodir/b"),
        ("if=a.raw", "of=b", "-f", "qcow2"),
        ("if=a.raw", "of=b", "-f", "bogus"),
        ("if=a.raw", "of=b", "-O", "bogus"),
        ("if=a.raw", "of=b", "-n"),
        ("--image-opts", "-f", "raw", "if=a.raw", "of=b"),
    ],
)
def test_refusals(prepared: Twins, arguments: tuple[str, ...]) -> None:
    assert prepared.alike("dd", *arguments) == 1


def test_the_messages_are_the_same(
    prepared: Twins, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgtool.cli.main import run

    for operand in ("skip=101", "bs=x", "bs=0", "count=x", "skip=-1", "bogus=1"):
        arguments = ["dd", "if=a.raw", "of=b", operand]
        done = subprocess.run(
            [require_tool("qemu-img"), *arguments],
            cwd=prepared.qemu,
            capture_output=True,
            text=True,
        )
        monkeypatch.chdir(prepared.qemu)
        assert run(arguments) == done.returncode
        assert capsys.readouterr().err == done.stderr.replace("qemu-img", "imgtool")


def test_what_only_imgtool_has(prepared: Twins, tmp_path: Path) -> None:
    """iseek is not among the count, as in dd itself, and isize cuts the input."""
    from imgtool.cli.main import run

    noise = (prepared.qemu / "a.raw").read_bytes()
    source, target = prepared.qemu / "a.q", tmp_path / "b"
    for operands, expected in (
        (("bs=1k", "iseek=2", "count=3"), noise[2048:5120]),
        (("bs=1k", "iseek=2", "count=3", "skip=1"), noise[3072:5120]),
        (("bs=1k", "iseek=2", "count=9", "isize=4k"), noise[2048:4096]),
        (("isize=1k",), noise[:1024]),
        (("isize=1G", "bs=1k", "iseek=49"), noise[-1024:]),
        (("iseek=9999",), b""),
    ):
        assert run(("dd", f"if={source}", f"of={target}", *operands)) == 0
        assert target.read_bytes() == expected


def test_an_image_is_not_copied_onto_itself(prepared: Twins) -> None:
    """qemu-img empties it."""
    from imgtool.cli.main import run

    image = prepared.qemu / "a.raw"
    before = image.read_bytes()
    assert run(("dd", f"if={image}", f"of={image}")) == 1
    assert image.read_bytes() == before
