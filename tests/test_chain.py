"""Which files an image may name, and how chains of images are opened.

Images here are made by hand, so that they can say what no tool would let them say.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.chain import MAX_CHAIN_DEPTH, Opener, OpenPolicy, Reference, Trust, open_image
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError, NotPermitted, ReadOnly
from imgtool.ops.info import info
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import ANY, CONFINED, NONE, check_extents, check_reads, open_disk
from tests.kit.limits import within_limits
from tests.kit.qcow2 import DATA_FILE, ImageBuilder

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    """Whether a chain opens or is refused on the way down, every file is closed again."""
    before = sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []
    yield
    if before:
        assert sorted(os.listdir("/proc/self/fd")) == before


def overlay(
    path: Path, name: str | bytes, format: bytes | None = b"raw", *, own: int | None = None
) -> Path:
    """Write an image over the backing file ``name``; ``own`` is a cluster that it holds itself."""
    builder = ImageBuilder(
        SIZE, backing=name if isinstance(name, bytes) else os.fsencode(name), backing_format=format
    )
    if own is not None:
        builder.data(own, bytes([own + 1]) * 65536)
    path.write_bytes(builder.build())
    return path


def with_data_file(path: Path, name: str) -> Path:
    """Write an image whose data lies in the file ``name``."""
    builder = ImageBuilder(SIZE, external=True, extensions=[(DATA_FILE, os.fsencode(name))])
    builder.data(0)
    path.write_bytes(builder.build())
    return path


def raw(path: Path, byte: int = 0x55) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes([byte]) * SIZE)
    return path


def first_byte(path: Path, policy: OpenPolicy = CONFINED) -> int:
    with open_disk(path, policy=policy) as device:
        return device.read_at(0, 1)[0]


# Names and policies


@pytest.mark.parametrize(
    ("name", "place", "allowed"),
    [
        ("base.raw", "images/base.raw", {"confined", "any"}),
        ("./base.raw", "images/base.raw", {"confined", "any"}),
        ("file:base.raw", "images/base.raw", {"confined", "any"}),
        ("sub/base.raw", "images/sub/base.raw", {"confined", "any"}),
        ("sub/../base.raw", "images/base.raw", {"confined", "any"}),
        ("{images}/base.raw", "images/base.raw", {"confined", "any"}),
        ("file:{images}/base.raw", "images/base.raw", {"confined", "any"}),
        ("../base.raw", "base.raw", {"any"}),
        ("sub/../../base.raw", "base.raw", {"any"}),
        ("{root}/base.raw", "base.raw", {"any"}),
        ("{root}/images-too/base.raw", "images-too/base.raw", {"any"}),
        ("../images-too/base.raw", "images-too/base.raw", {"any"}),
        ("/proc/self/../self/../..{root}/base.raw", "base.raw", {"any"}),
    ],
)
@pytest.mark.parametrize("role", ["backing file", "data file"])
def test_policies(tmp_path: Path, name: str, place: str, allowed: set[str], role: str) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    raw(tmp_path / place)
    written = name.format(root=tmp_path, images=images)
    make = overlay if role == "backing file" else with_data_file
    image = make(images / "disk.qcow2", written)
    for policy in (CONFINED, ANY, NONE):
        if policy.trust.value in allowed:
            assert first_byte(image, policy) == 0x55
        else:
            with pytest.raises(NotPermitted) as caught:
                open_disk(image, policy=policy)
            assert caught.value.filename == str(image)
            assert f"the {role} '{written}'" in caught.value.reason
            flag = "--untrusted" if policy is NONE else "--trust"
            assert flag in caught.value.reason


def test_allowed_paths(tmp_path: Path) -> None:
    deep = raw(tmp_path / "pool" / "deep.raw")
    (tmp_path / "images").mkdir()
    image = overlay(tmp_path / "images" / "disk.qcow2", str(deep))
    with pytest.raises(NotPermitted) as caught:
        open_disk(image)
    assert f"--allow-path '{tmp_path / 'pool'}'" in caught.value.reason
    for paths in ((deep.parent,), ("/nowhere", tmp_path), (deep,)):
        policy = OpenPolicy(allowed_paths=tuple(map(str, paths)))
        assert first_byte(image, policy) == 0x55
    for other in ("poo", "pool/deeper", "images"):
        with pytest.raises(NotPermitted):
            open_disk(image, policy=OpenPolicy(allowed_paths=(str(tmp_path / other),)))
    with pytest.raises(NotPermitted):
        open_disk(image, policy=OpenPolicy(Trust.NONE, (str(tmp_path),)))


def test_links_are_followed_before_judging(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    raw(tmp_path / "secret.raw")
    raw(images / "base.raw", 0x66)
    (images / "out").symlink_to(tmp_path / "secret.raw")
    (images / "up").symlink_to(tmp_path)
    (images / "in").symlink_to("base.raw")
    (images / "loop").symlink_to("loop")
    assert first_byte(overlay(images / "disk.qcow2", "in")) == 0x66
    for name in ("out", "up/secret.raw", "up/images/../secret.raw"):
        image = overlay(images / "disk.qcow2", name)
        with pytest.raises(NotPermitted, match="outside"):
            open_disk(image)
        assert first_byte(image, ANY) == 0x55
    assert first_byte(overlay(images / "disk.qcow2", "up/images/base.raw")) == 0x66
    with pytest.raises(ImageError):
        open_disk(overlay(images / "disk.qcow2", "loop"))


def test_image_reached_through_a_link(tmp_path: Path) -> None:
    """Names are relative to where the image was found, as QEMU takes them."""
    store = tmp_path / "store"
    raw(store / "base.raw", 1)
    raw(tmp_path / "base.raw", 2)
    overlay(store / "disk.qcow2", "base.raw")
    (tmp_path / "link.qcow2").symlink_to("store/disk.qcow2")
    (tmp_path / "folder").symlink_to("store")
    assert first_byte(tmp_path / "link.qcow2") == 2
    assert first_byte(tmp_path / "folder" / "disk.qcow2") == 1


NO_PATHS = [
    "json:{}",
    'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    "nbd:localhost:10809",
    "nbd+unix:///x?socket=/tmp/s",
    "http://127.0.0.1/disk",
    "https://127.0.0.1/disk",
    "ftp://127.0.0.1/disk",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "ssh://host/disk",
    "iscsi://host/target/1",
    "rbd:pool/image",
    "fat:rw:/etc",
    "vvfat:/etc",
    "host_device:/dev/sda",
    "blkdebug::disk",
    "a+b-c.d:x",
    "_x:y",
    "1:2",
    ":x",
]


@pytest.mark.parametrize("name", NO_PATHS)
@pytest.mark.parametrize("policy", [CONFINED, ANY], ids=["confined", "any"])
def test_names_that_are_no_paths(tmp_path: Path, name: str, policy: OpenPolicy) -> None:
    for image in (
        overlay(tmp_path / "disk.qcow2", name),
        overlay(tmp_path / "disk.qcow2", name, None),
        with_data_file(tmp_path / "data.qcow2", name),
    ):
        with pytest.raises(NotPermitted, match="not a plain path"):
            open_disk(image, policy=policy)


def test_names_that_only_look_like_protocols(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("./nbd:x", "a/http:b", "file:nbd:x"):
        path = tmp_path / name.removeprefix("file:")
        raw(path, 0x77)
        assert first_byte(overlay(tmp_path / "disk.qcow2", name)) == 0x77


@pytest.mark.parametrize(
    "name", [b"x\0y", b"\0", b"a" * 300, b"/" * 1023, b"\xff\xfe", b".", b"file:"]
)
@pytest.mark.parametrize("policy", [CONFINED, ANY], ids=["confined", "any"])
def test_names_that_lead_nowhere(tmp_path: Path, name: bytes, policy: OpenPolicy) -> None:
    image = overlay(tmp_path / "disk.qcow2", name)
    with pytest.raises(ImageError) as caught:
        open_disk(image, policy=policy)
    assert caught.value.filename
    assert str(image) in caught.value.opening


def test_name_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = b"b\xffse"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"\x12" * 512)
    assert first_byte(overlay(tmp_path / "disk.qcow2", name)) == 0x12


@pytest.mark.parametrize("role", ["backing file", "data file"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device"])
def test_special_files(tmp_path: Path, role: str, kind: str) -> None:
    """Nobody waits for a FIFO, reads /dev/zero or connects to anything."""
    special = tmp_path / "special"
    listener = None
    if kind == "fifo":
        os.mkfifo(special)
    elif kind == "directory":
        special.mkdir()
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(special))
    else:
        special = Path("/dev/zero")
    make = overlay if role == "backing file" else with_data_file
    image = make(tmp_path / "disk.qcow2", str(special))

    def work() -> list[type[Exception]]:
        found = []
        for policy in (CONFINED, OpenPolicy(allowed_paths=("/",)), ANY):
            try:
                open_disk(image, policy=policy)
            except ImageError as error:
                found.append(type(error))
        return found

    assert within_limits(work) == [NotPermitted, NotPermitted, ImageError]
    if listener is not None:
        listener.close()


def test_missing_files(tmp_path: Path) -> None:
    image = overlay(tmp_path / "disk.qcow2", "missing.raw")
    with pytest.raises(
        ImageError, match=r"Could not open backing file.*missing\.raw.*No such file"
    ):
        open_disk(image)
    image = with_data_file(tmp_path / "data.qcow2", "missing.raw")
    with pytest.raises(ImageError, match=r"Could not open data file.*missing\.raw.*No such file"):
        open_disk(image)


def test_images_without_a_directory(tmp_path: Path) -> None:
    raw(tmp_path / "base.raw")
    relative = overlay(tmp_path / "relative.qcow2", "base.raw").read_bytes()
    absolute = overlay(tmp_path / "absolute.qcow2", str(tmp_path / "base.raw")).read_bytes()
    for policy in (CONFINED, ANY):
        with pytest.raises(NotPermitted, match="the image has none"):
            open_disk(MemoryStorage(relative), policy=policy)
    with pytest.raises(NotPermitted, match="outside"):
        open_disk(MemoryStorage(absolute))
    with open_disk(MemoryStorage(absolute), policy=ANY) as device:
        assert device.read_at(0, 1) == b"\x55"


def test_what_the_user_names_needs_no_permission(tmp_path: Path) -> None:
    raw(tmp_path / "elsewhere" / "base.raw")
    image = overlay(tmp_path / "disk.qcow2", "/etc/passwd")
    given = Reference(tmp_path / "elsewhere" / "base.raw", "raw")
    with open_disk(image, policy=NONE, children={"backing": given}) as device:
        assert device.read_at(0, 1) == b"\x55"
    with open_disk(image, policy=NONE, children={"backing": None}) as device:
        assert device.read_at(0, 1) == b"\0"
    image = with_data_file(tmp_path / "data.qcow2", "/etc/passwd")
    with open_disk(image, policy=NONE, children={"data-file": given}) as device:
        assert device.read_at(0, 1) == b"\x55"


def test_policy_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGTOOL_TRUST", raising=False)
    assert OpenPolicy.default().trust is Trust.CONFINED
    for trust in Trust:
        monkeypatch.setenv("IMGTOOL_TRUST", trust.value)
        assert OpenPolicy.default().trust is trust
    for wrong in ("", "ANY", "yes"):
        monkeypatch.setenv("IMGTOOL_TRUST", wrong)
        with pytest.raises(BadOption, match="none, confined or any"):
            OpenPolicy.default()


def test_info_opens_the_one_file_only(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for name in ("fifo", "/etc/shadow", "nbd:localhost:1", "missing"):
        image = overlay(tmp_path / "disk.qcow2", name, None)
        assert info(Reference(image), opener=Opener(CONFINED)).backing_filename == name
        with pytest.raises(ImageError):
            info(Reference(image), opener=Opener(CONFINED), backing_chain=True)
        image = with_data_file(tmp_path / "data.qcow2", name)
        assert info(Reference(image), opener=Opener(CONFINED)).virtual_size == SIZE


def test_metadata_alone_is_not_read_as_a_disk(tmp_path: Path) -> None:
    for image in (
        overlay(tmp_path / "a.qcow2", "missing"),
        with_data_file(tmp_path / "b.qcow2", "missing"),
    ):
        with open_disk(image, follow=False) as device:
            assert device.size == SIZE
            with pytest.raises(ImageError, match="metadata only"):
                device.read_at(0, 1)


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("writable", [False, True])
def test_image_that_is_its_own_data_file(tmp_path: Path, link: bool, writable: bool) -> None:
    """A guest that wrote to its disk would write its own metadata."""
    if link:
        (tmp_path / "data").symlink_to("disk.qcow2")
    image = with_data_file(tmp_path / "disk.qcow2", "data" if link else "disk.qcow2")
    with pytest.raises(ImageError, match="image itself" if not writable else "image itself|lock"):
        open_disk(image, writable=writable)


def test_data_file_that_is_an_image_above(tmp_path: Path) -> None:
    with_data_file(tmp_path / "base.qcow2", "disk.qcow2")
    image = overlay(tmp_path / "disk.qcow2", "base.qcow2", b"qcow2")
    with pytest.raises(ImageError, match="lies above"):
        open_disk(image)


# Formats of backing files


def test_backing_format_that_is_not_recorded(tmp_path: Path) -> None:
    """Then the backing file is raw, and what does not look raw is refused: nothing is probed."""
    raw(tmp_path / "base")
    assert first_byte(overlay(tmp_path / "disk.qcow2", "base", None)) == 0x55
    (tmp_path / "base").write_bytes(ImageBuilder(SIZE).build())
    for recorded in (None, b""):
        image = overlay(tmp_path / "disk.qcow2", "base", recorded)
        for policy in (CONFINED, ANY):
            with pytest.raises(
                NotPermitted, match=r"records no format.*looks like qcow2.*-F qcow2"
            ):
                open_disk(image, policy=policy)


def test_backing_format_is_used_as_it_is_recorded(tmp_path: Path) -> None:
    base = overlay(tmp_path / "base", "/etc/passwd", b"raw", own=0)
    image = overlay(tmp_path / "disk.qcow2", "base", b"raw")
    with open_disk(image) as device:
        assert device.read_at(0, 4) == b"QFI\xfb"
        assert device.backing is not None
        assert device.backing.format == "raw"
    raw(base)
    with pytest.raises(ImageError, match="not in qcow2 format") as caught:
        open_disk(overlay(tmp_path / "disk.qcow2", "base", b"qcow2"))
    assert caught.value.opening == (str(base), str(image))
    for unknown in (b"nonsense", b"file", b"\xff", b"host_device"):
        with pytest.raises(ImageError, match="format"):
            open_disk(overlay(tmp_path / "disk.qcow2", "base", unknown))


def test_guessed_raw_is_not_written_to(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk.raw")
    with pytest.raises(ImageError, match=r"probing guessed raw.*-f raw"):
        open_disk(path, writable=True)
    with open_disk(path, "raw", writable=True) as device:
        device.write_at(0, b"QFI\xfb\0\0\0\3")
    with open_disk(path, "raw") as device:
        assert device.read_at(0, 4) == b"QFI\xfb"


def test_backing_files_are_opened_read_only(tmp_path: Path) -> None:
    base = raw(tmp_path / "base.raw")
    base.chmod(0o444)
    with open_disk(overlay(tmp_path / "disk.qcow2", "base.raw"), writable=True) as device:
        assert device.backing is not None
        assert device.backing.read_only
        with pytest.raises(ReadOnly):
            device.backing.write_at(0, b"x")
        device.write_at(0, b"new")
    assert base.read_bytes()[:3] == b"\x55\x55\x55"


# Loops and depth


def chain(folder: Path, depth: int) -> Path:
    """A chain of so many qcow2 images, each with a cluster of its own; return the topmost."""
    below = overlay(folder / "0.qcow2", "", None, own=0)
    for number in range(1, depth):
        below = overlay(folder / f"{number}.qcow2", below.name, b"qcow2", own=number % 16)
    return below


def test_chain_of_64_images(tmp_path: Path) -> None:
    assert MAX_CHAIN_DEPTH == 64
    top = chain(tmp_path, 64)

    def work() -> tuple[bytes, int]:
        with open_disk(top) as device:
            found = bytes(device.read_at(number << 16, 1)[0] for number in range(16))
            return found, max(extent.depth for extent in device.extents())

    assert within_limits(work) == (bytes(range(1, 17)), 15)


def test_chain_of_65_images(tmp_path: Path) -> None:
    top = chain(tmp_path, 65)
    with pytest.raises(ImageError, match="deeper than 64"):
        open_disk(top)
    with pytest.raises(ImageError, match="deeper than 64"):
        info(Reference(top), opener=Opener(CONFINED), backing_chain=True)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("link", ["name", "path", "symlink", "hard link"])
def test_loops(tmp_path: Path, length: int, link: str) -> None:
    """A file is known by device and inode, under whatever name it is met again."""
    bottom = tmp_path / "0.qcow2"
    closing = {"name": "last.qcow2", "path": f"{tmp_path}/./last.qcow2"}.get(link, "again.qcow2")
    names = [closing, *(f"{number}.qcow2" for number in range(length - 1))]
    for number, name in enumerate(names):
        path = tmp_path / ("last.qcow2" if number == length - 1 else f"{number}.qcow2")
        overlay(path, name, b"qcow2")
    top = tmp_path / "last.qcow2"
    if link == "symlink":
        (tmp_path / "again.qcow2").symlink_to(top)
    elif link == "hard link":
        os.link(top, tmp_path / "again.qcow2")
    assert bottom.exists() or length == 1

    def work() -> None:
        for look in (
            lambda: open_disk(top),
            lambda: info(Reference(top), opener=Opener(CONFINED), backing_chain=True),
        ):
            with pytest.raises(ImageError, match="loop"):
                look()

    within_limits(work)


def test_image_over_itself_as_raw(tmp_path: Path) -> None:
    """That is a loop as well, though it would not recurse."""
    with pytest.raises(ImageError, match="loop"):
        open_disk(overlay(tmp_path / "disk.qcow2", "disk.qcow2", b"raw"))


def test_one_image_below_two_others(tmp_path: Path) -> None:
    """No loop: the two chains are opened one after the other."""
    raw(tmp_path / "base.raw")
    for name in ("a.qcow2", "b.qcow2"):
        assert first_byte(overlay(tmp_path / name, "base.raw")) == 0x55
    opened: list[BlockDevice] = []
    opener = Opener(CONFINED)
    for name in ("a.qcow2", "b.qcow2"):
        opened.append(open_image(Reference(tmp_path / name), opener))
    for device in opened:
        device.close()


# Sizes


@pytest.mark.parametrize("size", [0, 512, 65536, 65536 + 512, SIZE - 512, SIZE, 2 * SIZE])
def test_backing_file_of_another_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "base.raw").write_bytes(b"\x55" * size)
    with open_disk(overlay(tmp_path / "disk.qcow2", "base.raw", own=2)) as device:
        expected = bytearray((b"\x55" * size)[:SIZE].ljust(SIZE, b"\0"))
        expected[2 << 16 : 3 << 16] = b"\3" * 65536
        check_reads(device, bytes(expected))
        check_extents(device, bytes(expected))
