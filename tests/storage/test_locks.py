"""Who may open an image that another has open: QEMU, another process, or this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.errors import InUse
from imgtool.storage import locks
from imgtool.storage.file import FileStorage
from imgtool.storage.host import Descriptor
from imgtool.storage.locks import READ, SHARED_READ, SHARED_WRITE, WRITE, ImageLock
from tests.kit.tools import require_tool
from tests.storage.hosts import without

if not sys.platform.startswith("linux"):
    pytest.skip("only Linux has open file description locks", allow_module_level=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    command = [require_tool("qemu-img"), "create", "-q", "-f", "qcow2", str(path), "1M"]
    subprocess.run(command, check=True)
    return path


@contextlib.contextmanager
def qemu_holds(image: Path, *options: str) -> Iterator[None]:
    """Keep ``image`` open in qemu-io, for writing unless ``options`` say otherwise."""
    command = [require_tool("qemu-io"), "-f", "qcow2", *options, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.read(8) == b"qemu-io>"
            yield
        finally:
            process.stdin.close()
            process.wait(10)


def qemu_opens(image: Path, *options: str) -> bool:
    """Say if qemu-io can open ``image``; if not, check that it is for a lock."""
    command = [require_tool("qemu-io"), "-f", "qcow2", *options, "-c", "read 0 512", str(image)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        assert "lock" in result.stderr
    return not result.returncode


class TestAgainstQemu:
    def test_a_writer_keeps_everybody_out(self, image: Path) -> None:
        with qemu_holds(image):
            with pytest.raises(InUse, match=r'shared "write" lock.*-U') as caught:
                FileStorage.open(image)
            assert caught.value.filename == str(image)
            with pytest.raises(InUse, match='"write" lock'):
                FileStorage.open(image, writable=True)
            with pytest.raises(InUse, match='"write" lock'):
                FileStorage.open(image, writable=True, share=True)
            with pytest.raises(InUse):
                FileStorage.create(image)
            FileStorage.open(image, share=True).close()
            FileStorage.open(image, writable=True, lock=False).close()
        assert image.stat().st_size > 0
        FileStorage.open(image, writable=True).close()

    def test_readers_share(self, image: Path) -> None:
        with qemu_holds(image, "-r"):
            FileStorage.open(image).close()
            with pytest.raises(InUse, match='"write" lock'):
                FileStorage.open(image, writable=True)

    def test_qemu_stays_out_where_we_write(self, image: Path) -> None:
        with FileStorage.open(image, writable=True):
            assert not qemu_opens(image)
            assert not qemu_opens(image, "-r")
            assert qemu_opens(image, "-r", "-U")
        assert qemu_opens(image)

    def test_qemu_reads_where_we_read(self, image: Path) -> None:
        with FileStorage.open(image):
            assert qemu_opens(image, "-r")
            assert not qemu_opens(image)

    def test_qemu_writes_where_we_share(self, image: Path) -> None:
        with FileStorage.open(image, share=True):
            assert qemu_opens(image)
        with FileStorage.open(image, lock=False):
            assert qemu_opens(image)


class TestInOneProcess:
    def test_readers_share(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        path.touch()
        with FileStorage.open(path), FileStorage.open(path):
            with pytest.raises(InUse):
                FileStorage.open(path, writable=True)
            FileStorage.open(path, writable=True, lock=False).close()

    def test_a_writer_is_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        with FileStorage.create(path):
            for share in (False, True):
                with pytest.raises(InUse):
                    FileStorage.open(path, writable=True, share=share)
            with pytest.raises(InUse):
                FileStorage.open(path)
            FileStorage.open(path, share=True).close()
        FileStorage.open(path, writable=True).close()

    def test_an_image_in_use_is_not_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        path.write_bytes(b"precious")
        with FileStorage.open(path):
            with pytest.raises(InUse):
                FileStorage.create(path)
            assert path.read_bytes() == b"precious"
            FileStorage.create(path, lock=False).close()
        assert path.read_bytes() == b""

    def test_the_second_descriptor_of_direct_io_has_no_locks(self, tmp_path: Path) -> None:
        path = tmp_path / "image"
        with FileStorage.create(path, cache="none"), pytest.raises(InUse):
            FileStorage.open(path)
        FileStorage.open(path).close()


class TestImageLock:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "image"
        path.touch()
        return path

    @pytest.fixture
    def ours(self, path: Path) -> Iterator[ImageLock]:
        yield from self._lock(path)

    @pytest.fixture
    def theirs(self, path: Path) -> Iterator[ImageLock]:
        yield from self._lock(path)

    def _lock(self, path: Path) -> Iterator[ImageLock]:
        with open(path, "r+b", 0) as file:
            yield ImageLock(Descriptor(file.fileno()), str(path))

    def test_the_bytes_are_those_of_qemu(self) -> None:
        assert READ.held == {100, 201, 203}
        assert WRITE.held == {100, 101, 103, 201, 203}
        assert SHARED_READ.held == {100}
        assert SHARED_WRITE.held == {100, 101, 103}

    def test_upgrade_and_downgrade(self, ours: ImageLock, theirs: ImageLock) -> None:
        ours.claim(READ)
        ours.claim(WRITE)
        with pytest.raises(InUse):
            theirs.claim(READ)
        ours.claim(READ)
        theirs.claim(READ)

    def test_an_upgrade_refused_leaves_things_as_they_were(
        self, ours: ImageLock, theirs: ImageLock
    ) -> None:
        ours.claim(READ)
        theirs.claim(READ)
        for _ in range(2):
            with pytest.raises(InUse):
                ours.claim(WRITE)
        theirs.claim(SHARED_READ)
        ours.claim(WRITE)
        with pytest.raises(InUse):
            theirs.claim(READ)

    def test_a_foreign_write_lock_is_a_conflict(self, path: Path, ours: ImageLock) -> None:
        script = (
            "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX);"
            "print(flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(InUse):
                ours.claim(READ)
            process.stdin.close()


class TestWithoutLocks:
    def test_a_host_without_locks_warns_the_first_writer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "_warned", False)
        without(monkeypatch, "locks")
        path = tmp_path / "image"
        path.touch()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FileStorage.open(path).close()
        with pytest.warns(locks.UnlockedWarning, match="can't be locked") as caught:
            FileStorage.open(path, writable=True).close()
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FileStorage.create(path).close()

    def test_a_file_system_without_locks_does_not_fail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(number: int, byte: int, kind: int) -> None:
            raise OSError(37, "No locks available")

        calls = locks.system_locks()
        assert calls is not None
        monkeypatch.setattr(locks, "system_locks", lambda: calls._replace(set=refuse))
        monkeypatch.setattr(locks, "_warned", False)
        with pytest.warns(locks.UnlockedWarning):
            FileStorage.create(tmp_path / "image").close()
