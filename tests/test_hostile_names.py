"""Every hostile name, as backing file, data file and extent: nothing is opened for any of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgtool
from imgtool.chain import ROLES, Opener
from imgtool.cli.main import run
from imgtool.errors import ImageError, NotPermitted
from imgtool.storage.file import FileStorage
from tests.kit.disks import CONFINED, NONE, open_disk
from tests.kit.hostile_names import NAMES, SECRET, landscape
from tests.kit.qcow2 import DATA_FILE, ImageBuilder

SIZE = 1 << 20

#: Events of the interpreter while a name is tried: what was opened, and anything worse.
_seen: list[tuple[str, object]] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event.split(".")[0] in ("open", "socket", "subprocess"):
        _seen.append((event, arguments[0] if arguments else None))


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_hook)


@pytest.fixture
def events() -> Iterator[list[tuple[str, object]]]:
    global _seen
    _seen = []
    yield _seen
    _seen = None


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return landscape(tmp_path_factory.mktemp("names"))


def image(path: Path, role: str, name: str) -> Path:
    """Write an image that calls its backing file, or its data file, ``name``."""
    written = os.fsencode(name)
    if role == "backing":
        builder = ImageBuilder(SIZE, backing=written, backing_format=b"raw")
    else:
        builder = ImageBuilder(SIZE, external=True, extensions=[(DATA_FILE, written)])
        builder.data(0)
    path.write_bytes(builder.build())
    return path


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 200


def identities(*paths: Path) -> set[tuple[int, int]]:
    return {(status.st_dev, status.st_ino) for status in map(os.stat, paths)}


@pytest.mark.parametrize("role", ["backing", "data-file"])
def test_as_stored_names(
    images: Path, role: str, monkeypatch: pytest.MonkeyPatch, events: list[tuple[str, object]]
) -> None:
    opened: set[object] = set()
    remember = FileStorage.__init__

    def initialise(self: FileStorage, *arguments: object, **named: object) -> None:
        remember(self, *arguments, **named)  # type: ignore[arg-type]
        opened.add(self.identity)

    monkeypatch.setattr(FileStorage, "__init__", initialise)
    for name in NAMES:
        # A data file's name ends at the first NUL, and an image without a backing file's has none.
        if (role == "backing" and not name) or (
            role == "data-file" and name.startswith("base.raw\0")
        ):
            continue
        path = image(images / "disk.qcow2", role, name)
        events.clear()
        with pytest.raises(ImageError) as caught:
            open_disk(path)
        assert caught.value.filename, name
        assert opened == identities(path), name
        assert not [event for event in events if event[0] != "open"], name
        # Only by a descriptor of a directory, never by its path, is a named file opened at all.
        assert str(images.parent / "secret.raw") not in [path for _, path in events], name
        with pytest.raises(NotPermitted):
            open_disk(path, policy=NONE)
        assert imgtool.info(path).virtual_size == SIZE


def test_as_extents(images: Path) -> None:
    """The gate is the same whatever a name is for."""
    with FileStorage.open(images / "base.raw") as storage:
        for role in ROLES:
            for name in NAMES:
                with pytest.raises(ImageError) as caught:
                    Opener(CONFINED).named_file(storage, name, role)
                assert caught.value.filename == storage.name
            with Opener(CONFINED).named_file(storage, "./base.raw", role) as found:
                assert found.read_at(0, 1) == b"\x55"


@pytest.mark.parametrize("role", ["backing", "data-file"])
@pytest.mark.parametrize(
    "command",
    [["convert", "-O", "raw", "{}", "{}.out"], ["map", "{}"], ["compare", "{}", "{}"]],
    ids=lambda command: str(command[0]),
)
def test_at_the_command_line(
    images: Path, role: str, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    target = images / "disk.qcow2.out"
    for name in NAMES[::7]:
        if not name or "\0" in name:
            continue
        path = image(images / "disk.qcow2", role, name)
        assert run([part.format(path) for part in command]) > 0
        output, errors = capfd.readouterr()
        assert output == ""
        assert errors.startswith("imgtool: ")
        assert errors.endswith("\n")
        assert errors[:-1].isprintable()
        assert SECRET.decode() not in errors
        assert not target.exists()


def test_what_exists_outside_is_not_told(images: Path) -> None:
    """Refusals are the same whether a file outside is there or not, or anybody may read it."""
    for first, second in (
        ("../secret.raw", "../missing.raw"),
        ("/etc/passwd", "/etc/no-such-file"),
        ("/etc/passwd/x", "/etc/no-such-file/x"),
        ("/root/.ssh/id_rsa", "/no/such/folder"),
        ("dangling-out", "out"),
        ("root/etc/passwd", "root/etc/missing"),
    ):
        for name in (first, second):
            with pytest.raises(NotPermitted, match="lies outside the image's directory"):
                open_disk(image(images / "disk.qcow2", "backing", name))
