"""Directories held open, and the files that a name leads to from one.

A path that is judged first and opened later may lead elsewhere by then. So names that images store
are followed here by hand: one component at a time, each relative to a directory that is open, links
read and not followed by the host. What is opened is what was judged, whatever is moved or replaced
meanwhile. Hosts that have no such calls (Windows) are asked twice, before and after.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import Protocol

#: Device and inode.
Identity = tuple[int, int]

#: As many links as Linux follows.
_MAX_LINKS = 40

SUPPORTED = (
    hasattr(os, "O_NOFOLLOW")
    and hasattr(os, "O_DIRECTORY")
    and {os.open, os.stat, os.readlink} <= os.supports_dir_fd
)

#: With O_PATH a directory need not be readable, and nothing of it is opened but its place.
_DIRECTORY = getattr(os, "O_PATH", 0) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Outside(Exception):
    """A name leads out of the directories that it may lead to."""


class NotRegular(Exception):
    """A name leads to something that is not a regular file."""


class Place(Protocol):
    """Where a file is that is about to be opened."""

    #: Whether it was the user who named it, so that the host may follow links.
    by_user: bool

    def open(self, flags: int) -> int:
        """Open the file and return its descriptor."""

    def take_directory(self) -> Directory | None:
        """Hand over the directory that names in the file are relative to, if it is held open."""

    def close(self) -> None:
        """Let go of what is held open. Closing twice is harmless."""


class Directory:
    """A directory, held open.

    ``trail`` identifies the directories from some point on down to this one, itself the last.
    """

    def __init__(self, number: int, trail: tuple[Identity, ...]) -> None:
        self._number = number
        self.trail = trail

    @classmethod
    def open(cls, path: str) -> Directory:
        """Open a directory as the host follows its path."""
        number = os.open(path, _DIRECTORY)
        return cls(number, (_identity_or_close(number),))

    @property
    def number(self) -> int:
        """The descriptor, for calls that are relative to it."""
        return self._number

    def copy(self) -> Directory:
        """The same directory, held open once more."""
        return Directory(os.dup(self._number), self.trail)

    def close(self) -> None:
        """Let go of it. Closing twice is harmless."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    # Going from one to the next

    def root(self) -> None:
        """Go to the root of the host's files."""
        number = os.open("/", _DIRECTORY)
        self._go(number, (_identity_or_close(number),))

    def down(self, name: str) -> None:
        """Go to a directory inside this one; a link in its place is not followed."""
        number = os.open(name, _DIRECTORY | _NOFOLLOW, dir_fd=self._number)
        self._go(number, (*self.trail, _identity_or_close(number)))

    def up(self) -> None:
        """Go to the directory that this one is in."""
        if len(self.trail) == 1:
            self.trail = _ancestors(self._number)
            if len(self.trail) == 1:
                return  # of the root that is the root itself
        number = os.open("..", _DIRECTORY, dir_fd=self._number)
        if _identity_or_close(number) != self.trail[-2]:
            os.close(number)
            raise OSError(errno.ESTALE, "A directory was moved meanwhile")
        self._go(number, self.trail[:-1])

    def _go(self, number: int, trail: tuple[Identity, ...]) -> None:
        left = self._number
        self._number, self.trail = number, trail
        os.close(left)

    def is_inside(self, allowed: Collection[Identity]) -> bool:
        """Whether this is one of some directories, or lies in one, as far as the trail goes."""
        return any(identity in allowed for identity in self.trail)


class Entry:
    """A file in a directory that is held open; ``names_from`` is where its names are relative to.

    A link in its place is followed only if it was the user who named it.
    """

    def __init__(
        self, names_from: Directory, home: Directory, name: str, *, by_user: bool = False
    ) -> None:
        self._names_from: Directory | None = names_from
        self._home = home
        self._held = {names_from, home}
        self._name = name
        self.by_user = by_user

    def open(self, flags: int) -> int:
        if self.by_user:
            return os.open(self._name, flags, dir_fd=self._home.number)
        number = os.open(self._name, flags | _NOFOLLOW, dir_fd=self._home.number)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise NotRegular
        return number

    def take_directory(self) -> Directory | None:
        taken, self._names_from = self._names_from, None
        self._held -= {taken}
        return taken

    def close(self) -> None:
        while self._held:
            self._held.pop().close()


def named_by_user(path: str) -> Entry | None:
    """Where the file lies that the user calls ``path``; None if there is no telling here."""
    folder, name = os.path.split(path)
    if not SUPPORTED or name in ("", ".", ".."):
        return None
    try:
        home = Directory.open(folder or ".")
    except OSError:
        return None  # whoever opens the file is told better why that does not go
    return Entry(home, home, name, by_user=True)


def find(start: Directory | None, name: str, allowed: Collection[Identity]) -> Entry:
    """Follow a stored ``name`` from the directory ``start`` to a regular file.

    The file must be one of ``allowed``, or lie in one of these directories. An absolute name begins
    at the root, as does any without ``start``. Raises :class:`Outside`, :class:`NotRegular`, and
    ``OSError``, which says nothing of what exists outside.
    """
    here = Directory.open("/") if start is None or name.startswith("/") else start.copy()
    names_from: list[Directory] = []
    try:
        return _follow(here, name, allowed, names_from)
    except BaseException as error:
        inside = here.is_inside(allowed)
        here.close()
        for directory in names_from:
            directory.close()
        if isinstance(error, OSError) and not inside:
            raise Outside from None
        raise


def _follow(
    here: Directory, name: str, allowed: Collection[Identity], names_from: list[Directory]
) -> Entry:
    whole = name.endswith(("/", "/.", "/..")) or name in (".", "..")
    todo = _parts(name)
    left, links = len(todo), 0
    while todo:
        part = todo.pop()
        if part == "..":
            here.up()
            continue
        if len(todo) < left:
            left = len(todo)
            if not left and not whole:
                names_from.append(here.copy())
        status = os.stat(part, dir_fd=here.number, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(part, dir_fd=here.number)
            if target.startswith("/"):
                here.root()
            whole |= not todo and target.endswith(("/", "/.", "/.."))
            todo += _parts(target)
        elif todo or whole:
            here.down(part)
        elif not here.is_inside(allowed) and (status.st_dev, status.st_ino) not in allowed:
            raise Outside
        elif not stat.S_ISREG(status.st_mode):
            raise NotRegular
        else:
            return Entry(names_from[0], here, part)
    raise NotRegular if here.is_inside(allowed) else Outside


def _parts(path: str) -> list[str]:
    """The components of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


class CheckedPath:
    """A file that is opened by its path, and judged before that and again after."""

    by_user = False

    def __init__(self, path: str, homes: Collection[str]) -> None:
        self._path = path
        self._homes = [os.path.realpath(home) for home in homes]
        self._real = self._judge()

    def _judge(self) -> str:
        real = os.path.realpath(self._path)
        if not any(_contains(home, real) for home in self._homes):
            raise Outside
        if os.path.exists(real) and not os.path.isfile(real):
            raise NotRegular
        return real

    def open(self, flags: int) -> int:
        number = os.open(self._path, flags)
        try:
            if self._judge() != self._real or not os.path.samestat(
                os.fstat(number), os.stat(self._real)
            ):
                raise Outside
        except BaseException:
            os.close(number)
            raise
        return number

    def take_directory(self) -> Directory | None:
        return None

    def close(self) -> None:
        """Do nothing: nothing is held open."""


def _contains(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def _identity_or_close(number: int) -> Identity:
    """The identity of a directory just opened, which is closed if that cannot be told."""
    try:
        return _identity(number)
    except BaseException:
        os.close(number)
        raise


def _identity(number: int) -> Identity:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _ancestors(number: int) -> tuple[Identity, ...]:
    """The directories from the root down to one."""
    found = [_identity(number)]
    current = os.dup(number)
    try:
        while True:
            above = os.open("..", _DIRECTORY, dir_fd=current)
            os.close(current)
            current = above
            identity = _identity(above)
            if identity == found[-1]:
                return tuple(reversed(found))
            found.append(identity)
    finally:
        os.close(current)
