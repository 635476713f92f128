"""Create: plan an image and judge what can be judged, then make its files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imgtool import registry
from imgtool.chain import Opener, Reference
from imgtool.errors import BadOption, ImageError
from imgtool.format import Format
from imgtool.names import file_path, same_file
from imgtool.ops.making import Making
from imgtool.units import parse_size

#: What qemu can open, so that an image may record it as the format of its backing file.
_BACKING_FORMATS = frozenset(
    (
        *("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw"),
        *("vdi", "vhdx", "vmdk", "vpc"),
    )
)


@dataclass(frozen=True)
class CreatePlan:
    """An image that is to be created.

    ``size`` is the virtual size in bytes. ``options`` have the types of the format's table;
    ``given`` holds them as the caller gave them.
    """

    path: str
    format: Format
    size: int
    options: Mapping[str, Any]
    given: Mapping[str, object] = field(default_factory=dict)

    def told(self) -> Iterator[tuple[str, str]]:
        """The options and their values as ``qemu-img create`` prints them, defaults included."""
        values = dict(self.options, size=self.size)
        for name, value in self.given.items():
            if isinstance(value, str) and isinstance(values.get(name), (bool, str)):
                values[name] = value
        return self.format.create_options.told(values)


def plan_create(
    target: str | os.PathLike[str],
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
    No file is touched yet. Raises :class:`ImageError`, mostly :class:`BadOption`.
    """
    path = file_path(os.fspath(target))
    given = dict(options or {})
    if backing_file is not None:
        given["backing_file"] = backing_file
    if backing_format is not None:
        given["backing_fmt"] = backing_format
    try:
        return _plan(path, size, format, given, unsafe, opener or Opener())
    except ImageError as error:
        raise error.in_file(path) from error.__cause__


def _plan(
    path: str,
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
    options = chosen.create_options.check(given)
    wanted = options.pop("size", None)
    if size is not None:
        if wanted is not None:
            raise BadOption("The image size must be specified only once")
        wanted = parse_size(size)
    if options.get("data_file") is not None:
        options["data_file"] = file_path(options["data_file"])
        if same_file(path, beside(path, options["data_file"])):
            raise BadOption("An image cannot be its own data file")
    backing_size = _check_backing(path, options, unsafe, opener)
    if wanted is None:
        wanted = backing_size
    if wanted is None:
        raise BadOption("Image creation needs a size parameter")
    return CreatePlan(path, chosen, wanted, options, given)


def _check_backing(
    path: str, options: Mapping[str, Any], unsafe: bool, opener: Opener
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
    if recorded is not None and recorded not in _BACKING_FORMATS:
        registry.find(recorded)
    if unsafe:
        if recorded is None:
            raise BadOption("Backing file specified without backing format")
        return None
    below = beside(path, file_path(name))
    if same_file(path, below):
        raise BadOption("An image cannot be its own backing file")
    try:
        if recorded is None:
            with opener.file(below) as storage:
                found = registry.probe(storage).name
            raise BadOption(
                f"Backing file specified without backing format (Detected format of {found})"
            )
        with opener.reference(Reference(below, recorded)) as backing:
            return backing.size
    except OSError as error:
        raise ImageError(
            f"Could not open backing file: Could not open '{below}': {error.strerror}"
        ) from error
    except ImageError as error:
        if not error.opening:
            raise
        culprit = "" if error.filename in (None, below) else f": '{error.filename}'"
        raise error.within(f"Could not open backing file '{below}'{culprit}") from error.__cause__


def beside(path: str, name: str) -> str:
    """Return the path of the file that the image at ``path`` calls ``name``."""
    return (
        path[: len(path) - len(os.path.basename(path))] + name if not os.path.isabs(name) else name
    )


def execute(plan: CreatePlan, *, cache: str = "writeback") -> None:
    """Create the image that was planned. If that fails, files that this call made are removed.

    Raises :class:`ImageError` for what the format objects to, before any file is touched, and
    ``OSError``.
    """
    try:
        with Making(plan.path, plan.format, plan.size, plan.options, cache=cache) as made:
            made.finish()
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise BadOption(
            f"The image size is too large for file format '{plan.format.name}'", filename=plan.path
        ) from error


def create(
    target: str | os.PathLike[str],
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
