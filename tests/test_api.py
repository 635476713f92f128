"""The package's public face."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import imgtool
from imgtool.api import Image
from imgtool.storage.memory import MemoryStorage


def test_every_name_is_there() -> None:
    for name in imgtool.__all__:
        assert getattr(imgtool, name) is not None
    assert set(imgtool.__all__) <= set(dir(imgtool))
    assert sorted(imgtool.__all__) == sorted(set(imgtool.__all__))
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        getattr(imgtool, "bogus")  # noqa: B009


def test_type_checkers_see_what_is_loaded_lazily() -> None:
    """The names in ``__all__``, those loaded lazily, and those that checkers see are the same."""
    import ast

    tree = ast.parse(Path(imgtool.__file__).read_text())
    seen = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("imgtool")
        for alias in statement.names
    }
    assert seen == set(imgtool.__all__) == set(imgtool._HOME_OF)


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.qcow2", "qcow2"), ("A.QCOW2", "qcow2"), ("a.raw", "raw"), ("a.img", "raw"), ("a", "raw")],
)
def test_the_format_goes_by_the_suffix(tmp_path: Path, name: str, format: str) -> None:
    imgtool.create(tmp_path / name, "1M")
    assert imgtool.info(tmp_path / name).format == format
    imgtool.convert(tmp_path / name, tmp_path / f"copy-{name}")
    assert imgtool.info(tmp_path / f"copy-{name}").format == format


def test_create(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "base.qcow2", 1 << 20, cluster_size="4k", lazy_refcounts=True)
    found = imgtool.info(tmp_path / "base.qcow2")
    assert (found.virtual_size, found.cluster_size) == (1 << 20, 4096)
    assert found.format_specific is not None
    assert found.format_specific["lazy-refcounts"] is True
    imgtool.create(tmp_path / "top.qcow2", backing_file=Path("base.qcow2"), backing_format="qcow2")
    found = imgtool.info(tmp_path / "top.qcow2", backing_chain=True)
    assert (found.virtual_size, found.backing_filename) == (1 << 20, "base.qcow2")
    assert found.full_backing_filename == str(tmp_path / "base.qcow2")
    assert [image.filename for image in found.backing_chain] == [str(tmp_path / "base.qcow2")]
    with pytest.raises(imgtool.BadOption, match="Invalid parameter 'bogus'"):
        imgtool.create(tmp_path / "x.raw", "1M", bogus=1)
    with pytest.raises(imgtool.BadOption, match="needs a size"):
        imgtool.create(tmp_path / "x.raw")


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"hello")
    sources: list[Image] = [
        str(path),
        path,
        io.BytesIO(path.read_bytes()),
        MemoryStorage(path.read_bytes()),
        imgtool.Reference(str(path), "qcow2"),
    ]
    for source in sources:
        with imgtool.open(source) as disk:
            assert (disk.format, disk.read_at(0, 5)) == ("qcow2", b"hello")
    with path.open("rb") as file:
        assert imgtool.info(file).virtual_size == 1 << 20
        assert imgtool.check(file).corruptions == 0


def test_options_of_the_format() -> None:
    data = bytes(512) + b"x" * 512
    with imgtool.open(MemoryStorage(data), format="raw", offset=512, size=512) as disk:
        assert disk.read_at(0, 512) == b"x" * 512
    described = imgtool.Reference(MemoryStorage(data), "raw", {"offset": 512})
    with imgtool.open(described, size=512) as disk:
        assert disk.size == 512
    with pytest.raises(imgtool.BadOption):
        imgtool.open(MemoryStorage(data), format="raw", bogus=1)


def test_convert(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"a" * (1 << 20))
    (tmp_path / "b.raw").write_bytes(b"b" * (1 << 20))
    steps: list[tuple[int, int]] = []
    imgtool.convert(
        [tmp_path / "a.raw", tmp_path / "b.raw"],
        tmp_path / "both.qcow2",
        compress="zstd",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (2 << 20, 2 << 20)
    found = imgtool.info(tmp_path / "both.qcow2").to_dict()
    assert found["format-specific"]["data"]["compression-type"] == "zstd"
    with imgtool.open(tmp_path / "both.qcow2") as disk:
        assert disk.read_at((1 << 20) - 1, 2) == b"ab"
    imgtool.convert(tmp_path / "b.raw", tmp_path / "both.qcow2", format="qcow2", create=False)
    with imgtool.open(tmp_path / "both.qcow2") as disk:
        assert disk.read_at((1 << 20) - 1, 2) == b"bb"


def test_targets_need_be_no_paths(tmp_path: Path) -> None:
    data = b"guest" * 100_000
    (tmp_path / "a.raw").write_bytes(data)
    written, memory = io.BytesIO(), MemoryStorage()
    imgtool.convert(tmp_path / "a.raw", written, format="qcow2", compress=True)
    imgtool.convert(written, memory, format="qcow2")
    assert imgtool.check(written).corruptions == 0
    with imgtool.open(MemoryStorage(memory.getvalue())) as disk:
        assert (disk.format, disk.read_at(0, len(data))) == ("qcow2", data)
    with open(tmp_path / "b.raw", "w+b") as file:
        imgtool.convert(written, file)
        file.seek(0)
        assert file.read(len(data)) == data
        with pytest.raises(imgtool.BadOption, match="empty"):
            imgtool.create(file, "1M")
    with open(tmp_path / "b.raw", "rb") as file, pytest.raises(imgtool.ReadOnly):
        imgtool.convert(written, file)
    empty = io.BytesIO()
    imgtool.create(empty, "1M", format="qcow2")
    assert imgtool.info(empty).virtual_size == 1 << 20


def test_what_is_no_image_at_all(tmp_path: Path) -> None:
    for other in (None, 3, b"a.raw"):
        with pytest.raises(TypeError, match="an image is a path"):
            imgtool.open(other)  # type: ignore[arg-type]
    for name in ("a\0b", "\ud800"):
        with pytest.raises(imgtool.BadOption, match="a file cannot have"):
            imgtool.open(name)
        with pytest.raises(imgtool.BadOption, match="a file cannot have"):
            imgtool.create(str(tmp_path / name), "1M")
    with pytest.raises(imgtool.BadOption, match=r"Invalid size .1\.5"):
        imgtool.create(tmp_path / "a", 1.5)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_map(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    with imgtool.open(tmp_path / "a.qcow2", writable=True) as disk:
        disk.write_at(65536, b"x" * 65536)
    found = [
        (extent.offset, extent.length, extent.kind) for extent in imgtool.map(tmp_path / "a.qcow2")
    ]
    assert found == [
        (0, 65536, imgtool.Kind.UNALLOCATED),
        (65536, 65536, imgtool.Kind.DATA),
        (131072, (1 << 20) - 131072, imgtool.Kind.UNALLOCATED),
    ]
    part = imgtool.map(tmp_path / "a.qcow2", start_offset=65536, max_length=512)
    assert [(extent.offset, extent.length) for extent in part] == [(65536, 512)]


def test_check_and_measure(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    report = imgtool.check(tmp_path / "a.qcow2")
    assert report.clean
    assert report.to_dict()["filename"] == str(tmp_path / "a.qcow2")
    with pytest.raises(imgtool.ImageError, match="does not support checks"):
        imgtool.check(MemoryStorage(bytes(512)), format="raw")
    assert imgtool.measure(tmp_path / "a.qcow2").required == 1 << 20
    empty = imgtool.measure(size="1M", format="qcow2")
    assert empty[:2] == imgtool.measure(tmp_path / "a.qcow2", format="qcow2")[:2]
    assert empty.required < empty.fully_allocated
    with pytest.raises(imgtool.BadOption):
        imgtool.measure()


def test_compare(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "a.qcow2", "1M")
    imgtool.create(tmp_path / "b.raw", "2M")
    assert imgtool.compare(tmp_path / "a.qcow2", tmp_path / "b.raw").identical
    assert not imgtool.compare(tmp_path / "a.qcow2", tmp_path / "b.raw", strict=True).identical
    with imgtool.open(tmp_path / "b.raw", format="raw", writable=True) as disk:
        disk.write_at(1000, b"x")
    found = imgtool.compare(tmp_path / "a.qcow2", tmp_path / "b.raw", second_format="raw")
    assert (found.identical, found.offset) == (False, 512)


def test_trust(tmp_path: Path) -> None:
    imgtool.create(tmp_path / "base.qcow2", "1M")
    imgtool.create(tmp_path / "top.qcow2", backing_file="base.qcow2", backing_format="qcow2")
    nothing = imgtool.OpenPolicy(imgtool.Trust.NONE)
    with pytest.raises(imgtool.NotPermitted):
        imgtool.open(tmp_path / "top.qcow2", policy=nothing)
    assert imgtool.info(tmp_path / "top.qcow2", policy=nothing).backing_filename == "base.qcow2"


def test_errors_are_imgtool_s_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        imgtool.open(tmp_path / "nope")
    with pytest.raises(imgtool.WrongFormat) as caught:
        imgtool.open(MemoryStorage(bytes(512), "m"), format="qcow2")
    assert str(caught.value) == "'m': Image is not in qcow2 format"
    with pytest.raises(imgtool.BadOption, match="Unknown format 'bogus'"):
        imgtool.open(MemoryStorage(bytes(512)), format="bogus")


def test_names_that_are_no_names(tmp_path: Path) -> None:
    """A lone surrogate, which no encoding has, is not the host's to refuse."""
    path, wrong = tmp_path / "a.qcow2", "\ud800"
    imgtool.create(path, "1M")
    with pytest.raises(imgtool.BadOption, match="no name can have"):
        imgtool.create_snapshot(path, wrong)
    with pytest.raises(imgtool.BadOption, match="no name can have"):
        imgtool.bitmap(path, wrong, "add")
    with pytest.raises(imgtool.BadOption):
        imgtool.create(
            tmp_path / "b.qcow2", "1M", backing_file=wrong, backing_format="raw", unsafe=True
        )
    assert list(tmp_path.iterdir()) == [path]


def test_a_host_that_starts_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.qcow2"
    imgtool.create(path, "1M")
    with imgtool.open(path, writable=True) as disk:
        disk.write_at(0, b"x" * 500_000)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for use in (
        lambda: imgtool.convert(path, tmp_path / "b.raw"),
        lambda: imgtool.hash(path),
        lambda: imgtool.compact(path),
    ):
        with pytest.raises(OSError, match="no more threads"):
            use()
    assert list(tmp_path.iterdir()) == [path]


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imgtool", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"imgtool version {imgtool.__version__}\n"
