"""FileStorage: a regular file or a block device of the host."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from imgtool import zeros
from imgtool.errors import BadOption, Closed, ImageError, InUse, ReadOnly
from imgtool.gate import Gate
from imgtool.names import check_name
from imgtool.storage import copying, holes
from imgtool.storage.base import HostRange, Storage
from imgtool.storage.bounds import (
    MAX_OFFSET,
    check_offset,
    check_range,
    zero_pieces,
)
from imgtool.storage.host import Descriptor
from imgtool.storage.locks import READ, SHARED_READ, SHARED_WRITE, WRITE, ImageLock

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from imgtool.storage.direct import DirectFile
    from imgtool.storage.directory import Place


class _Cache(NamedTuple):
    """A cache mode: round the page cache, durable after each write, never durable."""

    direct: bool = False
    through: bool = False
    unsafe: bool = False


_CACHES = {
    "none": _Cache(direct=True),
    "writeback": _Cache(),
    "writethrough": _Cache(through=True),
    "directsync": _Cache(direct=True, through=True),
    "unsafe": _Cache(unsafe=True),
}

_UNLOCKED = contextlib.nullcontext()

#: Up to so many bytes are read before it is known if the file has them.
_SMALL = 64 << 10


class FileStorage(Storage):
    """A host file, opened with :meth:`open` or :meth:`create`.

    ``created`` is true if :meth:`create` brought the file into being, so that whoever fails to
    make an image of it may remove it. Any number of threads may use one object. Closing it waits
    for what they are doing; using it after that raises :class:`Closed`.

    After :meth:`flush` has failed once nobody knows what is on the disk: every later write and
    flush raises the same ``OSError``.
    """

    created: bool

    def __init__(
        self, file: Descriptor, name: str, *, writable: bool, cache: str, created: bool = False
    ) -> None:
        """Take over an open descriptor; :meth:`open` and :meth:`create` are the ways here."""
        status = os.fstat(file.fileno())
        self._file = file
        self.name = name
        self.read_only = not writable
        self.created = created
        self._cache = _cache(cache)
        self._identity = (status.st_dev, status.st_ino)
        self._device_size = file.seek(0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else None
        self._naming = _Naming(name)
        #: Whoever may make the file longer is inside; its length is set with nobody there.
        self._growth = Gate()
        #: The file is known to be at least this long, so writes below it need no lock.
        self._end = status.st_size if self._device_size is None else self._device_size
        self._syncing = threading.Lock()
        self._failure: OSError | None = None
        self._direct: DirectFile | None = None
        if self._cache.direct:
            from imgtool.storage.direct import ALIGNMENT, DirectFile

            self._direct = DirectFile.over(file, writable=writable)
            if self._direct is not None:
                self.alignment = ALIGNMENT

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        share: bool = False,
        lock: bool = True,
        cache: str = "writeback",
        place: Place | None = None,
    ) -> Self:
        """Open an existing regular file or block device.

        ``share`` lets other processes write to it meanwhile (-U); ``lock=False`` neither takes
        nor respects locks. ``cache`` is one of QEMU's modes: none, writeback, writethrough,
        directsync, unsafe; where the host has no O_DIRECT, none and directsync go without.
        ``place`` is where the file was found to be, if it has been looked for; ``path`` is then
        but what it is called. Whatever happens, its directories are taken care of.

        Raises ``OSError`` if the file can't be opened, :class:`InUse` if its locks conflict, and
        :class:`ImageError` if it is a directory, a FIFO, a socket or a character device, or if no
        file can have such a name.
        """
        name = os.fspath(path)
        check_name(name)
        with contextlib.closing(place) if place is not None else contextlib.nullcontext():
            _cache(cache)
            if place is None or place.by_user:
                _check_kind(os.stat(path), name)
            file = _open(path, os.O_RDWR if writable else os.O_RDONLY, place)
            with _closing_on_error(file):
                _check_kind(os.fstat(file.fileno()), name)
                if lock:
                    _claim(file, name, writable, share)
                storage = cls(file, name, writable=writable, cache=cache)
                storage.names_from = None if place is None else place.take_directory()
                return storage

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        share: bool = False,
        lock: bool = True,
        cache: str = "writeback",
        nocow: bool = False,
        extent_size_hint: int = 0,
    ) -> Self:
        """Make an empty file, or empty the one that is there once its locks are held.

        A block device is opened and left as it is. ``nocow`` asks the file system not to copy on
        write, where it has that choice (Btrfs), ``extent_size_hint`` (bytes, a multiple of the
        block size) to allocate in extents of that size (XFS). All else is as in :meth:`open`.
        """
        name = os.fspath(path)
        check_name(name)
        _cache(cache)
        with contextlib.suppress(FileNotFoundError):
            _check_kind(os.stat(path), name)
        file, created = _create(path)
        with _closing_on_error(file, path if created else None):
            status = os.fstat(file.fileno())
            _check_kind(status, name)
            if lock:
                _claim(file, name, True, share)
            if stat.S_ISREG(status.st_mode):
                # ext4 writes out, on closing, a file that was cut to nothing, even if it was empty.
                if os.fstat(file.fileno()).st_size:
                    file.truncate(0)
                if nocow:
                    _set_nocow(file)
                if extent_size_hint:
                    _set_extent_size(file, extent_size_hint)
            return cls(file, name, writable=True, cache=cache, created=created)

    # What it is

    @property
    def identity(self) -> Hashable | None:
        return self._identity

    @property
    def directory(self) -> str | None:
        return os.path.dirname(self.name) or "."

    def fileno(self) -> int | None:
        return self._file.fileno()

    def duplicate(self) -> io.FileIO:
        return io.FileIO(os.dup(self._file.fileno()))

    def size(self) -> int:
        if self._device_size is not None:
            return self._device_size
        with self._naming:
            return self._status().st_size

    def allocated(self) -> int:
        with self._naming:
            status = self._status()
        return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size

    def _status(self) -> os.stat_result:
        with self._file as number:
            return os.fstat(number)

    def ranges(self, offset: int, length: int) -> Iterator[HostRange]:
        end = check_range(offset, length, self.name)
        return holes.merge(self._find(offset, end))

    def _find(self, offset: int, end: int) -> Iterator[HostRange]:
        inside = max(offset, min(end, self.size()))
        with self._naming:
            yield from holes.find(self._file, offset, inside)
        yield HostRange(inside, end - inside, False)

    # Reading

    def read_into(self, offset: int, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        check_offset(offset, self.name)
        with self._naming:
            inside = offset <= MAX_OFFSET - len(view)
            part = view if inside else view[: max(0, MAX_OFFSET - offset)]
            found = self._get(part, offset)
        if found < len(view):
            zeros.fill(view[found:])
        return found

    def read_at(self, offset: int, length: int) -> bytes:
        if self._direct is None and 0 <= offset <= MAX_OFFSET - length:
            with self._naming:
                data = self._file.read_bytes(offset, length)
            if len(data) == length:
                return data
        return super().read_at(offset, length)

    def read_exact(self, offset: int, length: int, what: str) -> bytearray:
        if self._direct is None and 0 <= offset <= MAX_OFFSET - length and length <= _SMALL:
            with self._naming:
                data = self._file.read_bytes(offset, length)
            if len(data) == length:
                return bytearray(data)
        return super().read_exact(offset, length, what)

    def _get(self, view: memoryview, offset: int) -> int:
        if not view:
            return 0
        if self._direct is not None:
            return self._direct.read(view, offset)
        return self._file.read(view, offset)

    # Writing

    def write_at(self, offset: int, data: ReadableBuffer) -> None:
        view = memoryview(data)
        end = self._check_write(offset, view.nbytes)
        if not view.nbytes:
            return
        view = view.cast("B")
        with self._naming, self._growing(end):
            self._put(view, offset)
            self._reached(end)
        self._written()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = self._check_write(offset, length)
        if not length:
            return
        with self._naming, self._growth.drained() if unmap else self._growing(end):
            if unmap:
                size = self.size()
                if end > size:
                    self._set_size(end)
                inside = min(end, size) - offset
                if inside > 0 and not (
                    holes.punch(self._file, offset, inside)
                    or holes.zero(self._file, offset, inside, keep_size=True)
                ):
                    self._put_zeroes(offset, inside)
            elif not holes.zero(self._file, offset, length):
                self._put_zeroes(offset, length)
            self._reached(end)
        self._written()

    def discard(self, offset: int, length: int) -> None:
        end = min(self._check_write(offset, length), self.size())
        if offset < end:
            with self._naming:
                holes.punch(self._file, offset, end - offset)

    def truncate(self, size: int) -> None:
        """Set the length in bytes. A block device keeps its own, which must be enough."""
        self._check_write(size, 0)
        with self._naming, self._growth.drained():
            self._set_size(size)
        self._written()

    def preallocate(self, offset: int, length: int, *, full: bool = False) -> None:
        end = self._check_write(offset, length)
        if not length:
            return
        with self._naming, self._growing(end):
            if full:
                self._put_zeroes(offset, length)
            elif self._device_size is not None:
                self._check_device(end)
            elif not holes.reserve(self._file, offset, length):
                for part in list(self.ranges(offset, length)):
                    if not part.is_data:
                        self._put_zeroes(part.offset, part.length)
            self._reached(end)
        self._written()

    def copy_from(self, source: Storage, source_offset: int, offset: int, length: int) -> int:
        return self._take_from(copying.copy, source, source_offset, offset, length)

    def share_from(self, source: Storage, source_offset: int, offset: int, length: int) -> bool:
        check_range(source_offset, length, source.name)
        if source_offset + length > source.size():
            return False
        return self._take_from(copying.share, source, source_offset, offset, length) > 0

    def _take_from(
        self,
        call: Callable[[int, int, int, int, int], int],
        source: Storage,
        source_offset: int,
        offset: int,
        length: int,
    ) -> int:
        """Let the kernel take a range of another file; return how many bytes it has taken."""
        end = self._check_write(offset, length)
        check_range(source_offset, length, source.name)
        if not isinstance(source, FileStorage) or not length:
            return 0
        held = _UNLOCKED if source is self else source._file
        with self._naming, self._growing(end), held, self._file as number:
            done = call(source._file.fileno(), source_offset, number, offset, length)
            self._reached(offset + done)
        if done:
            self._written()
        return done

    def flush(self) -> None:
        """Make everything written durable; with the cache mode ``unsafe``, nothing happens."""
        self._check_open()
        if not self.read_only and not self._cache.unsafe:
            self._sync()

    def close(self) -> None:
        with self._naming, contextlib.ExitStack() as stack:
            # Whatever fails, all of it is let go of.
            stack.callback(self.account.close)
            if self.names_from is not None:
                stack.callback(self.names_from.close)
            stack.callback(self._file.close)
            if self._direct is not None:
                stack.callback(self._direct.close)

    def __del__(self) -> None:
        # Only where __init__ got as far as owning the file.
        if "_file" in self.__dict__ and not self._file.closed:
            warnings.warn(f"unclosed {self.name!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def _check_write(self, offset: int, length: int) -> int:
        """Return the end of a range that may be written, or raise why it may not be."""
        if self.read_only:
            raise ReadOnly("The file is open read-only", filename=self.name)
        self._check_failure()
        self._check_open()
        return check_range(offset, length, self.name)

    def _check_open(self) -> None:
        if self._file.closed:
            raise Closed(filename=self.name)

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise OSError(self._failure.errno, self._failure.strerror, self.name)

    def _check_device(self, end: int) -> None:
        if self._device_size is not None and end > self._device_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)

    def _growing(self, end: int) -> contextlib.AbstractContextManager[object]:
        """What to be inside while writing up to ``end``: nobody may cut the file off meanwhile."""
        return self._growth if end > self._end else _UNLOCKED

    def _reached(self, end: int) -> None:
        if end > self._end:
            self._end = end

    def _set_size(self, size: int) -> None:
        if self._device_size is not None:
            self._check_device(size)
            return
        self._file.truncate(size)
        self._end = size

    def _put(self, view: memoryview, offset: int) -> None:
        if self._direct is not None:
            self._direct.write(view, offset)
        else:
            self._file.write(view, offset)

    def _put_zeroes(self, offset: int, length: int) -> None:
        for start, piece in zero_pieces(offset, length):
            self._put(piece, start)

    def _written(self) -> None:
        if self._cache.through:
            self._sync()

    def _sync(self) -> None:
        with self._syncing:
            self._check_failure()
            try:
                with self._naming:
                    self._file.sync()
            except OSError as error:
                self._failure = error
                raise


class _Naming:
    """Puts a file's name into errors of calls that only know a descriptor."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(value, OSError) and value.filename is None:
            value.filename = self._name
        elif isinstance(value, Closed):
            value.in_file(self._name)


def _cache(mode: str) -> _Cache:
    try:
        return _CACHES[mode]
    except KeyError:
        raise BadOption(f"Invalid cache mode '{mode}': it is {', '.join(_CACHES)}") from None


def _check_kind(status: os.stat_result, name: str) -> None:
    """Refuse what is neither a regular file nor a block device."""
    mode = status.st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kinds = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a character device",
        }
        kind = kinds.get(stat.S_IFMT(mode), "a special file")
        raise ImageError(
            f"It is {kind}: an image must be a regular file or a block device", filename=name
        )


def _open(path: str | os.PathLike[str], flags: int, place: Place | None = None) -> Descriptor:
    """Open a file so that not even a FIFO, put in its place just now, makes us wait."""
    for flag in ("O_CLOEXEC", "O_BINARY", "O_NOCTTY", "O_NONBLOCK"):
        flags |= getattr(os, flag, 0)
    if place is None:
        file = Descriptor(os.open(path, flags, 0o644))
    else:
        try:
            file = Descriptor(place.open(flags))
        except OSError as error:
            error.filename = os.fspath(path)
            raise
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(file.fileno(), True)
    return file


def _create(path: str | os.PathLike[str]) -> tuple[Descriptor, bool]:
    """Open a file for writing, making it if need be; also return if this made it."""
    free = not os.path.lexists(path)
    try:
        return _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
    except FileExistsError:
        pass
    except BaseException as error:
        # Ctrl-C as the call returns: the file is there, and nobody else would remove it.
        if free and not isinstance(error, OSError):
            _remove(path)
        raise
    try:
        return _open(path, os.O_RDWR), False
    except FileNotFoundError:
        # A link that leads nowhere yet, or a file that went away.
        with contextlib.suppress(FileExistsError):
            return _open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL), True
        return _open(path, os.O_RDWR | os.O_CREAT), False


def _claim(file: Descriptor, name: str, writable: bool, share: bool) -> None:
    if writable:
        ImageLock(file, name).claim(SHARED_WRITE if share else WRITE)
    else:
        ImageLock(file, name).claim(SHARED_READ if share else READ)


@contextlib.contextmanager
def _closing_on_error(
    file: Descriptor, made: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Close ``file`` if the block raises; one that was ``made`` just now is removed as well."""
    try:
        yield
    except BaseException as error:
        # One that somebody else has begun to use is not ours any more. Removed while it is locked:
        # a moment later the name may be another's. Windows removes only what nobody has open.
        ours = made is not None and not isinstance(error, InUse)
        removed = ours and made is not None and _remove(made)
        file.close()
        if ours and not removed and made is not None:
            _remove(made)
        raise


def _remove(path: str | os.PathLike[str]) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _set_nocow(file: Descriptor) -> None:
    """Set FS_NOCOW_FL on an empty file; that it can't be set is nothing to fail for."""
    try:
        import fcntl
        import struct
    except ImportError:
        return
    number = struct.calcsize("l")
    get, put = 0x80006601 | number << 16, 0x40006602 | number << 16
    with contextlib.suppress(OSError):
        flags = struct.unpack("i", fcntl.ioctl(file.fileno(), get, bytes(4)))[0]
        fcntl.ioctl(file.fileno(), put, struct.pack("i", flags | 0x00800000))


def _set_extent_size(file: Descriptor, size: int) -> None:
    """Set the extent size hint of an empty file; that it can't be set is nothing to fail for.

    Linux, struct fsxattr: xflags, extsize, three more words, and eight bytes of padding.
    """
    try:
        import fcntl
        import struct
    except ImportError:
        return
    get, put, has_extent_size = 0x801C581F, 0x401C5820, 0x800
    with contextlib.suppress(OSError):
        words = struct.unpack("5I8s", fcntl.ioctl(file.fileno(), get, bytes(28)))
        changed = struct.pack("5I8s", words[0] | has_extent_size, size, *words[2:])
        fcntl.ioctl(file.fileno(), put, changed)
