"""Create: plan an image and judge everything that can be judged, then make its files.

The two steps are apart so that nothing on disk is touched by a request that is refused, and so
that ``convert`` can fill the image between its beginning and its end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imgtool import registry
from imgtool.budget import Budget
from imgtool.chain import Opener, Reference, Source
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError, ReadOnly
from imgtool.format import Format, NewImage
from imgtool.names import file_path, identity_of, recorded_path, same_file
from imgtool.secrets import Secret, Secrets
from imgtool.storage.base import Storage
from imgtool.units import parse_size

#: What qemu can open, so that an image may record it as the format of its backing file.
_BACKING_FORMATS = frozenset(
    (
        *("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw"),
        *("vdi", "vhdx", "vmdk", "vpc"),
    )
)

#: The file system's interface has 32 bits for it.
_MAX_EXTENT_SIZE = (1 << 32) - 1


class CreatePlan(NamedTuple):
    """An image that is to be created.

    ``size`` is the virtual size in bytes. ``options`` have the types of the format's table;
    ``given`` holds them as the caller gave them; there a secret is still an id.
    """

    target: str | Storage
    format: Format
    size: int
    options: Mapping[str, Any]
    given: Mapping[str, object]
    #: What the image may cost while it is made.
    budget: Budget

    @property
    def name(self) -> str:
        """The new image's file name."""
        return self.target if isinstance(self.target, str) else self.target.name

    def told(self) -> Iterator[tuple[str, str]]:
        """The options and their values as ``qemu-img create`` prints them, defaults included."""
        values = dict(self.options, size=self.size)
        for name, value in self.given.items():
            key = name.replace("-", "_")
            if isinstance(value, str) and isinstance(values.get(key), (bool, str, Secret)):
                values[key] = value
        return self.format.create_options.told(values)


def plan_create(
    target: Source,
    size: int | str | None = None,
    *,
    format: str = "raw",
    backing_file: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    options: Mapping[str, object] | None = None,
    opener: Opener | None = None,
) -> CreatePlan:
    """Plan an image of ``size`` (bytes, or text with a suffix), or of its backing image's size.

    ``backing_file`` is relative to the new image's directory and needs ``backing_format``; it is
    opened and must be an image of that format, unless ``unsafe``. ``options`` are the format's.

    No file is touched yet. Raises :class:`ImageError`, mostly :class:`BadOption`; a disk that is
    larger than the opener's budget allows is :class:`~imgtool.errors.OverBudget`.
    """
    where = _place(target)
    given = dict(options or {})
    if backing_file is not None:
        given["backing_file"] = backing_file
    if backing_format is not None:
        given["backing_fmt"] = backing_format
    try:
        return _plan(where, size, format, given, unsafe, opener or Opener())
    except ImageError as error:
        raise error.in_file(where if isinstance(where, str) else where.name) from error.__cause__


def _place(target: Source) -> str | Storage:
    """The path of the file that is to be made, or the storage that is to be filled."""
    if isinstance(target, Storage):
        return target
    if isinstance(target, (str, os.PathLike)):
        return file_path(os.fspath(target))
    from imgtool.storage.fileobj import FileObjectStorage

    storage = FileObjectStorage(target)
    if storage.read_only:
        raise ReadOnly("The file object is not open for writing", filename=storage.name)
    return storage


def _plan(
    target: str | Storage,
    size: int | str | None,
    format: str,
    given: Mapping[str, object],
    unsafe: bool,
    opener: Opener,
) -> CreatePlan:
    chosen = registry.find(format)
    chosen.load_creator()
    if given.get("backing_file") is not None and "backing_file" not in chosen.create_options:
        raise BadOption(f"Backing file not supported for file format '{chosen.name}'")
    options = _with_secrets(chosen, chosen.create_options.check(given), opener.secrets)
    wanted = options.pop("size", None)
    if size is not None:
        if wanted is not None:
            raise BadOption("The image size must be specified only once")
        wanted = parse_size(size)
    if options.get("extent_size_hint", 0) > _MAX_EXTENT_SIZE:
        raise BadOption("Extent size hint is too large")
    data_file = options.get("data_file")
    if data_file is not None:
        options["data_file"] = file_path(recorded_path(data_file))
        if _is(target, beside(target, options["data_file"])):
            raise BadOption("An image cannot be its own data file")
    if options.get("backing_file"):
        options["backing_file"] = recorded_path(options["backing_file"])
    backing_size = _check_backing(target, options, unsafe, opener)
    if wanted is None:
        wanted = backing_size
    if wanted is None:
        raise BadOption("Image creation needs a size parameter")
    opener.budget.check_virtual_size(wanted, target if isinstance(target, str) else target.name)
    return CreatePlan(target, chosen, wanted, options, given, opener.budget)


def _with_secrets(format: Format, options: dict[str, Any], secrets: Secrets) -> dict[str, Any]:
    """Put secrets in place of their ids. Whoever gives a password wants encryption."""
    table = format.create_options
    if secrets.password is not None:
        if not any(option.secret for option in table):
            raise BadOption(f"Images of format '{format.name}' cannot be encrypted")
        if "encrypt.format" in table:
            options.setdefault("encrypt.format", "luks")
    return secrets.fill_in(table, options)


def _check_backing(
    target: str | Storage, options: Mapping[str, Any], unsafe: bool, opener: Opener
) -> int | None:
    """Return the backing image's size in bytes; None if there is none, or it is not to be seen."""
    name: str | None = options.get("backing_file")
    recorded: str | None = options.get("backing_fmt")
    if name is None:
        if recorded is not None:
            raise BadOption("Backing format cannot be used without backing file")
        return None
    if not name:
        raise BadOption("Expected backing file name, got empty string")
    if recorded is not None:
        check_backing_format(recorded)
    if unsafe:
        if recorded is None:
            raise BadOption("Backing file specified without backing format")
        return None
    # Most images lie on nothing.
    from imgtool.ops.identities import identities, refuse_files_that_are_read

    path = beside(target, file_path(name))
    if _is(target, path):
        raise BadOption("An image cannot be its own backing file")
    # Only its size is read: no guest that writes to it can upset that, and it needs no secret.
    reading = Opener(
        policy=opener.policy,
        share=True,
        lock=opener.lock,
        cache=opener.cache,
        contents=False,
        budget=opener.budget,
    )
    try:
        if recorded is None:
            with reading.file(path) as storage:
                found = registry.probe(storage).name
            raise BadOption(
                f"Backing file specified without backing format (Detected format of {found})"
            )
        with reading.reference(Reference(path, recorded)) as backing:
            read = set(identities(backing))
            refuse_files_that_are_read(target, read)
            if options.get("data_file") is not None:
                refuse_files_that_are_read(beside(target, options["data_file"]), read)
            return backing.size
    except OSError as error:
        raise ImageError(
            f"Could not open backing file: Could not open '{path}': {error.strerror}"
        ) from error
    except ImageError as error:
        if not error.opening:
            raise
        culprit = "" if error.filename in (None, path) else f": '{error.filename}'"
        raise error.within(f"Could not open backing file '{path}'{culprit}") from error.__cause__


def check_backing_format(name: str) -> None:
    """Raise :class:`BadOption` unless an image may record ``name`` for its backing file."""
    if name not in _BACKING_FORMATS:
        registry.find(name)


def beside(target: str | Storage, name: str) -> str:
    """Return the path of a file that the image at ``target`` will call ``name``."""
    if os.path.isabs(name):
        return name
    if isinstance(target, str):
        return target[: len(target) - len(os.path.basename(target))] + name
    return os.path.join(target.directory or "", name)


def _is(target: str | Storage, path: str) -> bool:
    return isinstance(target, str) and same_file(target, path)


@contextlib.contextmanager
def begin(
    plan: CreatePlan,
    *,
    backing: BlockDevice | None = None,
    cache: str = "writeback",
    lock: bool = True,
) -> Iterator[NewImage]:
    """Make the image's files and give it to be filled; the caller finishes it.

    What exists is only touched once the format has nothing to object. If the block raises, files
    that this call made are removed again. ``backing`` is the open backing image, for formats that
    have to look at it.
    """
    with contextlib.ExitStack() as locks, contextlib.ExitStack() as undo:
        try:
            plan.format.judge_options(plan.size, plan.options)
            storage, data = _make_files(plan, locks, undo, cache, lock)
            storage.account = plan.budget.account(storage.name)
            creator = plan.format.load_creator()
            with creator(storage, plan.size, plan.options, data=data, backing=backing) as image:
                yield image
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise BadOption(
                f"The image size is too large for file format '{plan.format.name}'",
                filename=plan.name,
            ) from error
        except ImageError as error:
            raise error.in_file(plan.name) from error.__cause__
        undo.pop_all()


def _make_files(
    plan: CreatePlan,
    locks: contextlib.ExitStack,
    undo: contextlib.ExitStack,
    cache: str,
    lock: bool,
) -> tuple[Storage, Storage | None]:
    """Make the image's file and its data file; none is emptied if the other cannot be had."""
    if plan.options.get("data_file") is None:
        return _make(plan, plan.target, locks, undo, cache, lock), None
    from imgtool.storage.file import FileStorage

    files = (plan.target, beside(plan.target, plan.options["data_file"]))
    there = [isinstance(file, Storage) or os.path.exists(file) for file in files]
    for file, exists in zip(files, there, strict=True):
        if exists and not isinstance(file, Storage):
            FileStorage.open(file, writable=True, lock=lock).close()
    # What is new is made first: it can be taken back.
    made = {}
    for number in sorted((0, 1), key=lambda number: there[number]):
        made[number] = _make(plan, files[number], locks, undo, cache, lock)
    return made[0], made[1]


def _make(
    plan: CreatePlan,
    target: str | Storage,
    locks: contextlib.ExitStack,
    undo: contextlib.ExitStack,
    cache: str,
    lock: bool,
) -> Storage:
    if isinstance(target, Storage):
        if target.size():
            raise BadOption("An image is only created in a storage or a file object that is empty")
        return target
    from imgtool.storage.file import FileStorage

    storage = FileStorage.create(
        target,
        cache=cache,
        lock=lock,
        nocow=bool(plan.options.get("nocow")),
        extent_size_hint=plan.options.get("extent_size_hint", 0),
    )
    held: io.FileIO | None = None
    try:
        # Whoever closes the file, its lock is kept until nothing is to be taken back any more.
        held = storage.duplicate()
        if held is not None:
            locks.enter_context(held)
        undo.callback(_discard, storage, held)
    except BaseException:
        _discard(storage, held)
        raise
    if not storage.created:
        # What was there is gone before anything is put in its place: they are never mixed.
        storage.flush()
    return storage


def _discard(storage: Any, held: io.FileIO | None) -> None:
    """Take back a file that this run made; one that was there before stays, emptied.

    That goes for the file itself: what has its name by now may be another's. ``held`` is the open
    file as well, with its lock.
    """
    with contextlib.suppress(OSError):
        if (
            not storage.created
            and held is not None
            and stat.S_ISREG(os.fstat(held.fileno()).st_mode)
        ):
            os.ftruncate(held.fileno(), 0)
    removed = storage.created and _unlink(storage)
    with contextlib.suppress(OSError):  # there is an error to tell already
        storage.close()
    if storage.created and not removed:
        if held is not None:
            held.close()
        # Windows removes only what nobody has open.
        _unlink(storage)


def _unlink(storage: Any) -> bool:
    with contextlib.suppress(OSError):
        if identity_of(storage.name) == storage.identity:
            # Of a link that led nowhere it is what the link names that was made.
            os.unlink(os.path.realpath(storage.name))
            return True
    return False


def execute(plan: CreatePlan, *, cache: str = "writeback") -> None:
    """Create the image that was planned."""
    with begin(plan, cache=cache) as image:
        image.finish()


def create(
    target: Source,
    size: int | str | None = None,
    *,
    format: str = "raw",
    backing_file: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    options: Mapping[str, object] | None = None,
    opener: Opener | None = None,
) -> None:
    """Create an image; see :func:`plan_create` for what the arguments mean."""
    execute(
        plan_create(
            target,
            size,
            format=format,
            backing_file=backing_file,
            backing_format=backing_format,
            unsafe=unsafe,
            options=options,
            opener=opener,
        )
    )
