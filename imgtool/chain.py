"""Opens an image together with the files that it names.

:class:`OpenPolicy` decides which named files may be opened; :class:`Opener` is what a driver asks
for its backing image and its data file. Names that the user gave are the user's own word and pass.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, NamedTuple, Union

from imgtool import registry
from imgtool.budget import Budget
from imgtool.errors import BadOption, ImageError, NotPermitted
from imgtool.secrets import Secrets
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from imgtool.device import BlockDevice
    from imgtool.storage.directory import Place

Source = Union[str, "os.PathLike[str]", Storage, IO[bytes]]

#: How many images one may lie on top of another.
MAX_CHAIN_DEPTH = 64

#: What an image may name other files for, and what messages call them.
ROLES = {"backing": "backing file", "data-file": "data file", "extent": "extent"}


class Trust(enum.Enum):
    """How far the names that an image stores are trusted."""

    NONE = "none"
    CONFINED = "confined"
    ANY = "any"


@dataclass(frozen=True)
class OpenPolicy:
    """Decides which files an image may name as backing file, data file or extent.

    ``CONFINED``, the default: a plain path that resolves, links followed, to a regular file inside
    the directory of the image that names it, or inside one of ``allowed_paths``. ``ANY``: whatever
    path it names. ``NONE``: nothing is opened.
    """

    trust: Trust = Trust.CONFINED
    allowed_paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.trust, Trust):
            raise TypeError(f"trust is a Trust, not {self.trust!r}")
        # A string is a sequence of strings, too, and "/" is often the first.
        if isinstance(self.allowed_paths, (str, os.PathLike)):
            raise TypeError("allowed_paths is a tuple of directories, not one of them")

    @classmethod
    def default(cls) -> OpenPolicy:
        """The policy that ``IMGTOOL_TRUST`` in the environment asks for, else confined."""
        value = os.environ.get("IMGTOOL_TRUST", Trust.CONFINED.value)
        try:
            return cls(Trust(value))
        except ValueError:
            raise BadOption(
                f"IMGTOOL_TRUST is '{value}': it must be none, confined or any"
            ) from None

    def open(
        self, image: Storage, name: str, role: str, open: Callable[[str, Place | None], Storage]
    ) -> Storage:
        """Open the file that ``image`` calls ``name``, if it may be opened.

        ``role`` is one of :data:`ROLES`. ``open`` is given the file's path and, where the file has
        been judged, the place in which it is to be opened, so that it is the one that was judged.
        Raises :class:`NotPermitted` with the flag that would allow it, where one would, and
        :class:`ImageError` for a file that cannot be opened.
        """
        called = ROLES[role]
        named = f"It names the {called} '{name}'"
        if self.trust is Trust.NONE:
            raise NotPermitted(
                f"{named}, and --untrusted opens no file that an image names", filename=image.name
            )
        stored = plain_name(image, name, called)
        path = shown_path(image, stored)
        from imgtool.storage import directory

        try:
            if self.trust is Trust.ANY:
                return open(path, None)
            return open(path, self._find(image, stored, path))
        except directory.Outside:
            # Where links lead outside is not told, since whoever made the image may read this.
            folder = os.path.normpath(os.path.dirname(path))
            if image.directory is not None and folder == os.path.normpath(image.directory):
                allowing = "--allow-path with the directory that it leads to"
            else:
                allowing = f"--allow-path '{folder}'"
            raise NotPermitted(
                f"{named}, which lies outside the image's directory; "
                f"use {allowing} to allow it, or --trust",
                filename=image.name,
            ) from None
        except directory.NotRegular:
            raise NotPermitted(
                f"{named}, which is not a regular file; use --trust to open it all the same",
                filename=image.name,
            ) from None
        except OSError as error:
            raise ImageError(
                f"Could not open {called}: Could not open '{path}': {error.strerror}",
                filename=image.name,
            ) from error

    def _find(self, image: Storage, stored: str, path: str) -> Place:
        """Where a stored name leads to: a regular file inside the directories that are allowed."""
        from imgtool.storage import directory

        with contextlib.ExitStack() as stack:
            start = image.names_from
            try:
                if start is None and image.directory is not None and directory.SUPPORTED:
                    start = directory.Directory.open(image.directory)
                    stack.callback(start.close)
            except PermissionError:
                pass  # where a directory has to be readable to be held open
            if start is None and (image.directory is not None or not directory.SUPPORTED):
                own = [] if image.directory is None else [image.directory]
                return directory.CheckedPath(path, [*self.allowed_paths, *own])
            allowed = set() if start is None else {start.trail[-1]}
            for home in self.allowed_paths:
                with contextlib.suppress(OSError):
                    status = os.stat(home)
                    allowed.add((status.st_dev, status.st_ino))
            return directory.find(start, stored, allowed)


def plain_name(image: Storage, name: str, role: str) -> str:
    """Return the path that a stored ``name`` stands for, as it is.

    Raises :class:`NotPermitted` for everything that is not a path: ``json:``, URLs, protocols.
    """
    if not name or "\0" in name:
        raise NotPermitted(f"It names a {role} without a valid name", filename=image.name)
    # Names are stored as bytes; which text the host's paths are for these is up to its locale.
    name = os.fsdecode(name.encode("utf-8", "surrogateescape"))
    if name.startswith("file:") and not name.startswith("file://"):
        name = name[len("file:") :]
    elif has_protocol(name):
        raise NotPermitted(
            f"It names the {role} '{name}', which is not a plain path", filename=image.name
        )
    if not os.path.isabs(name) and image.directory is None:
        raise NotPermitted(
            f"It names the {role} '{name}', relative to a directory, and the image has none",
            filename=image.name,
        )
    return name


def shown_path(image: Storage, name: str) -> str:
    """Return the path of a file that ``image`` calls ``name``, for messages and ``map``."""
    if os.path.isabs(name):
        return name
    own = os.path.basename(image.name)
    if image.directory == (os.path.dirname(image.name) or "."):
        # As it was typed, "./" and all.
        return image.name[: len(image.name) - len(own)] + name
    return os.path.join(image.directory or "", name)


def has_protocol(name: str) -> bool:
    """Whether QEMU would take a stored name for ``protocol:something`` instead of a path.

    That is where there is a colon in front of the first slash.
    """
    return ":" in name.partition("/")[0] and not (os.name == "nt" and name[1:2] == ":")


@dataclass(frozen=True)
class Reference:
    """An image, or a file, as the user describes it: where it is, its format, and its options.

    ``children`` says what to use, by role (``backing``, ``data-file``), in place of what the image
    names; None stands for "nothing", :class:`Settings` for what it names, opened with options.
    """

    source: Source
    format: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    children: Mapping[str, Override] = field(default_factory=dict)


class Settings(NamedTuple):
    """How to open the backing image that an image names: its options, and what it lies on."""

    options: Mapping[str, object] = MappingProxyType({})
    children: Mapping[str, Override] = MappingProxyType({})


Override = Reference | Settings | None


@dataclass(frozen=True)
class Opener:
    """How images are opened, and how far down the chain we are.

    ``follow`` false opens the one file alone, for its metadata: drivers then have neither backing
    image nor data file, and reading what lies there raises. ``share`` takes no lock that excludes
    others; ``cache`` is one of qemu's cache modes. Backing images are opened read-only, but for the
    one at ``writable_depth`` (1 is the nearest). ``trail`` identifies the images above, and
    ``overrides`` are the user's own words on what the image being opened would name. ``secrets``
    unlock encrypted images; without ``contents`` they are opened locked, for their metadata.
    ``names_followed`` says that names are followed even so, by whoever holds the device. What all
    of this may cost comes out of one ``budget``.
    """

    policy: OpenPolicy = field(default_factory=OpenPolicy.default)
    follow: bool = True
    writable: bool = False
    share: bool = False
    lock: bool = True
    cache: str = "writeback"
    writable_depth: int | None = None
    trail: tuple[Hashable, ...] = ()
    overrides: Mapping[str, Override] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)
    contents: bool = True
    names_followed: bool = False
    budget: Budget = field(default_factory=Budget)

    @property
    def unlocks(self) -> bool:
        """Whether encrypted images are opened with their secrets."""
        return self.writable or (self.follow and self.contents)

    def file(self, path: str) -> Storage:
        """Open the host file that the user calls ``path`` as this opener says."""
        place = None
        if self.policy.trust is Trust.CONFINED and (self.follow or self.names_followed):
            from imgtool.storage.directory import named_by_user

            place = named_by_user(path)
        return self._file_at(path, place)

    def _file_at(self, path: str, place: Place | None) -> Storage:
        from imgtool.storage.file import FileStorage

        return FileStorage.open(
            path,
            writable=self.writable,
            share=self.share,
            lock=self.lock,
            cache=self.cache,
            place=place,
        )

    def image(
        self,
        storage: Storage,
        format: str | None,
        options: Mapping[str, object] | None = None,
    ) -> BlockDevice:
        """Open the image in ``storage``, probing its format if ``format`` is None.

        Takes over ``storage``, and closes it if the image can't be opened.
        """
        try:
            storage.account = self.budget.account(storage.name)
            identity = storage.identity
            if identity is not None and identity in self.trail:
                raise ImageError(
                    "The backing chain is a loop: this file is its own backing file",
                    filename=storage.name,
                )
            if len(self.trail) >= MAX_CHAIN_DEPTH:
                raise ImageError(
                    f"The backing chain is deeper than {MAX_CHAIN_DEPTH} images",
                    filename=storage.name,
                )
            if format is None:
                chosen = registry.probe(storage)
                if self.writable and chosen.name == "raw":
                    raise ImageError(
                        "Image format was not specified and probing guessed raw: a guess is not "
                        "written to, so specify the 'raw' format explicitly with -f raw",
                        filename=storage.name,
                    )
            else:
                chosen = registry.find(format)
                registry.expect(storage, chosen)
            below = replace(self, trail=(*self.trail, identity or object()))
            checked = chosen.open_options.check(options or {})
            if self.unlocks:
                checked = self.secrets.fill_in(chosen.open_options, checked)
            device = chosen.load_opener()(storage, below, checked)
            try:
                self.budget.check_virtual_size(device.size, storage.name)
            except ImageError:
                device.close()
                raise
            return device
        except ImageError as error:
            storage.close()
            raise error.while_opening(storage.name) from error.__cause__
        except BaseException:
            storage.close()
            raise

    def reference(self, reference: Reference) -> BlockDevice:
        """Open an image that the user describes."""
        chosen = self
        if self.overrides or reference.children:
            chosen = replace(self, overrides=reference.children)
        try:
            storage = storage_for(reference.source, chosen)
        except ImageError as error:
            if error.filename is not None:
                error.while_opening(error.filename)
            raise
        return chosen.image(storage, reference.format, reference.options)

    def backing(
        self,
        image: Storage,
        name: str | None,
        format: str | None,
    ) -> BlockDevice | None:
        """Open the backing image that ``image`` calls ``name``; None if it has none.

        A recorded ``format`` is used as it is. Where none is recorded the file must be raw: what
        looks like anything else is refused, never opened as what it claims to be.
        """
        return self.named_backing(image, name, format) if self.follow else None

    def named_backing(
        self,
        image: Storage,
        name: str | None,
        format: str | None,
    ) -> BlockDevice | None:
        """Open the backing image as :meth:`backing` does, even if names are not followed."""
        writable = len(self.trail) == self.writable_depth
        below = replace(self, writable=writable, overrides={})
        options: Mapping[str, object] = {}
        if "backing" in self.overrides:
            given = self.overrides["backing"]
            if given is None:
                return None
            if isinstance(given, Reference):
                return below.reference(given)
            options, below = given.options, replace(below, overrides=given.children)
        if name is None:
            return None
        storage = below.named_file(image, name, "backing")
        if format is None:
            guessed = registry.probe(storage)
            if writable or guessed.name != "raw":
                storage.close()
                raise NotPermitted(
                    f"It records no format for its backing file '{name}', which looks like "
                    f"{guessed.name}; record it: "
                    f"imgtool rebase -u -F {guessed.name} -b '{name}' '{image.name}'",
                    filename=image.name,
                )
        return below.image(storage, format or "raw", options)

    def data_file(self, image: Storage, name: str | None) -> Storage | None:
        """Open the external data file that ``image`` calls ``name``."""
        if not self.follow:
            return None
        given = self.overrides.get("data-file")
        if isinstance(given, Reference):
            storage = storage_for(given.source, self)
        elif name is None:
            raise ImageError("It needs an external data file and names none", filename=image.name)
        else:
            storage = self.named_file(image, name, "data-file")
        storage.account = self.budget.account(storage.name)
        return storage

    def named_file(self, image: Storage, name: str, role: str) -> Storage:
        """Open the file that ``image`` calls ``name``, if the policy allows it.

        The gate for every file that an image names: its backing file, its data file, its extents.
        """
        storage = self.policy.open(image, name, role, self._file_at)
        if role != "backing" and storage.identity in self.trail:
            storage.close()
            raise ImageError(
                f"It names the {ROLES[role]} '{name}', which is the image itself or lies above it",
                filename=image.name,
            )
        return storage


def storage_for(source: Source, opener: Opener) -> Storage:
    """Return a storage over a path, an open binary file, or a storage (as it is)."""
    if isinstance(source, Storage):
        return source
    if isinstance(source, (str, os.PathLike)):
        return opener.file(os.fspath(source))
    from imgtool.storage.fileobj import FileObjectStorage

    return FileObjectStorage(source)


def open_image(reference: Reference, opener: Opener | None = None) -> BlockDevice:
    """Open an image and its chain; see :func:`imgtool.open`, which this is the engine of."""
    return (opener or Opener()).reference(reference)
