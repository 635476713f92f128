"""Format: what a plugin declares about an image format.

A plugin is one folder under ``formats/`` (or a package that registers the entry point group
``imgtool.formats``) whose ``__init__`` holds ``FORMAT``. Declaring a format imports nothing heavy:
it names the functions that do the work, and their modules are loaded when they are called for.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from imgtool.errors import BadOption
from imgtool.options import OptionTable

if TYPE_CHECKING:
    from typing_extensions import Self

    from imgtool.chain import Opener
    from imgtool.description import Description
    from imgtool.device import BlockDevice, StoredBitmap
    from imgtool.extent import Extent
    from imgtool.findings import CheckResult
    from imgtool.inspection import Notes, Steps
    from imgtool.storage.base import Storage

#: How many bytes of the start and of the end of a file a probe is shown.
PROBE_HEAD = 4096
PROBE_TAIL = 1024
#: The score of a probe that has no doubt.
CERTAIN = 100

_NO_OPTIONS = OptionTable()


class Check(Protocol):
    """Checks an open image, of which nothing but its own file is read.

    ``report`` is told each finding as it is made. Raises :class:`~imgtool.errors.CorruptImage`
    where the structure is too broken to be followed.
    """

    def __call__(
        self, device: BlockDevice, report: Callable[[str], None] | None = None
    ) -> CheckResult: ...


class Repair(Protocol):
    """Repairs the image in ``storage``, of which nothing but its own file is read or written.

    ``what`` is ``leaks`` (space that is lost, and nothing else) or ``all``. ``report`` is told what
    is found and done. Nothing that could be read before reads differently afterwards, and a repair
    that is cut short can be begun anew. With ``dry_run`` nothing is written, and the result says
    what there is, and how much of it would be repaired. Raises :class:`~imgtool.errors.ImageError`
    for what cannot be repaired.
    """

    def __call__(
        self,
        storage: Storage,
        what: str,
        report: Callable[[str], None] | None = None,
        *,
        dry_run: bool = False,
    ) -> CheckResult: ...


class Measurement(NamedTuple):
    """How large a new image's file will be, in bytes: as ``qemu-img measure`` counts.

    ``required`` holds what is allocated in the source; ``fully_allocated`` holds everything;
    ``bitmaps`` is what the source's persistent bitmaps need, None if it has none to copy.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what ``qemu-img measure --output=json`` prints, keys in its order."""
        values: dict[str, Any] = {} if self.bitmaps is None else {"bitmaps": self.bitmaps}
        values["required"] = self.required
        values["fully-allocated"] = self.fully_allocated
        return values


class Measure(Protocol):
    """Predicts the file size of a new image of ``size`` bytes with these ``options``.

    ``extents`` cover the source, ``None`` where there is none (nothing is allocated then);
    ``bitmaps`` are those that it keeps. Raises :class:`~imgtool.errors.BadOption` for an image
    that cannot be.
    """

    def __call__(
        self,
        size: int,
        options: Mapping[str, Any],
        extents: Iterable[Extent] | None,
        bitmaps: Sequence[StoredBitmap] | None = None,
    ) -> Measurement: ...


class Bitmaps(Protocol):
    """The persistent dirty bitmaps of an open image.

    What is changed is stored when the image closes. A bitmap that does not exist, or was not stored
    properly, raises :class:`~imgtool.errors.ImageError`.
    """

    def add(self, name: str, granularity: int | None = None) -> None:
        """Add a clean bitmap that follows writes; ``granularity`` bytes go by one bit."""

    def remove(self, name: str) -> None:
        """Remove a bitmap, even one that was not stored properly."""

    def clear(self, name: str) -> None:
        """Make a bitmap all clean."""

    def enable(self, name: str, enabled: bool) -> None:
        """Let a bitmap follow writes, or stop following them."""

    def merge(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Mark ``(offset, length)`` ranges, in bytes, as dirty."""

    def ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """The dirty ranges as ``(offset, length)`` in bytes, in order."""


class Amend(Protocol):
    """Changes an open, writable image as ``options`` of the format's amend table say."""

    def __call__(
        self,
        device: BlockDevice,
        options: Mapping[str, Any],
        progress: Callable[[int, int], None] | None,
    ) -> None: ...


class Inspect(Protocol):
    """Judges a file that has the format's signature, by its structure alone.

    A generator, which yields what it wants to see of the file (:mod:`imgtool.inspection`) and
    writes what it learns into ``notes``. An :class:`~imgtool.errors.ImageError` that it raises is
    a problem of the file.
    """

    def __call__(self, notes: Notes) -> Steps[None]: ...


class NewImage(abc.ABC):
    """An image in the making: ``device`` can be written to, but the file opens as nothing yet.

    :meth:`finish` writes the structure that makes it an image, last of all. Closing without it
    leaves a file that no format claims. ``reads_zero`` says whether what is never written does.
    """

    device: BlockDevice
    reads_zero: bool = True

    @abc.abstractmethod
    def finish(self) -> None:
        """Flush everything and make the file an image."""

    def close(self) -> None:
        """Release the files. Closing twice is harmless."""
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class OpenDevice(Protocol):
    """Opens the image in ``storage``; files that it names are asked of ``opener``.

    Takes over ``storage``: closing the device closes it. On error it is left open. ``options``
    have been checked against the format's table.
    """

    def __call__(
        self, storage: Storage, opener: Opener, options: Mapping[str, Any]
    ) -> BlockDevice: ...


class CreateImage(Protocol):
    """Begins an image of ``size`` bytes in ``storage``, which is empty and is taken over.

    ``options`` have been checked against the format's table. The caller has checked that backing
    and data file may be used and has created the data file, ``data``, if one is asked for.
    ``backing`` is the open backing image, if there is one and it was to be looked at.
    """

    def __call__(
        self,
        storage: Storage,
        size: int,
        options: Mapping[str, Any],
        *,
        data: Storage | None = None,
        backing: BlockDevice | None = None,
    ) -> NewImage: ...


class Format(NamedTuple):
    """An image format.

    ``probe(head, tail)`` scores from 0 (certainly not) to 100 (certainly) how likely a file is to
    be of this format, given its first and last bytes. The strings ``opener``, ``creator``,
    ``checker``, ``repairer``, ``measurer``, ``describer`` and ``inspector`` name functions as
    ``module:function``; an empty one says that the format lacks the operation. ``features`` lists
    what the driver can do: ``create``, ``write``, ``encrypt``, ``resize``, ``backing``,
    ``compress``, ``snapshots``, ``bitmaps``, ``zero-clusters``, ``data-file``.
    """

    name: str
    description: str
    probe: Callable[[bytes, bytes], int]
    opener: str
    creator: str = ""
    judge: str = ""
    checker: str = ""
    repairer: str = ""
    measurer: str = ""
    describer: str = ""
    inspector: str = ""
    bitmapper: str = ""
    amender: str = ""
    aliases: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    create_options: OptionTable = _NO_OPTIONS
    amend_options: OptionTable = _NO_OPTIONS
    open_options: OptionTable = _NO_OPTIONS
    features: frozenset[str] = frozenset()

    def load_opener(self) -> OpenDevice:
        """Import the function that opens images of this format."""
        return cast(OpenDevice, _load(self.opener))

    def load_creator(self) -> CreateImage:
        """Import the function that creates images; raises :class:`BadOption` if there is none."""
        if not self.creator:
            raise BadOption(f"Format '{self.name}' cannot be created: it is read-only in imgtool")
        return cast(CreateImage, _load(self.creator))

    def judge_options(self, size: int, options: Mapping[str, Any]) -> None:
        """Raise :class:`BadOption` for what a new image can't be, before any file is touched."""
        if self.judge:
            _load(self.judge)(size, options)

    def load_checker(self) -> Check | None:
        """Import the function that checks an open image, or None if the format has no checks."""
        return cast("Check", _load(self.checker)) if self.checker else None

    def load_repairer(self) -> Repair | None:
        """Import the function that repairs an image, or None if the format has none."""
        return cast("Repair", _load(self.repairer)) if self.repairer else None

    def load_measurer(self) -> Measure | None:
        """Import the function that predicts file sizes, or None if the format has none."""
        return cast("Measure", _load(self.measurer)) if self.measurer else None

    def load_amender(self) -> Amend | None:
        """Import the function that changes an open image's options; None if there is none."""
        return cast("Amend", _load(self.amender)) if self.amender else None

    def load_bitmapper(self) -> Callable[[BlockDevice], Bitmaps] | None:
        """Import the function that gives an open image's bitmaps; None if there are none."""
        if not self.bitmapper:
            return None
        return cast("Callable[[BlockDevice], Bitmaps]", _load(self.bitmapper))

    def load_describer(self) -> Callable[[BlockDevice], Description] | None:
        """Import the function that gives ``info`` what is particular to the format."""
        return (
            cast("Callable[[BlockDevice], Description]", _load(self.describer))
            if self.describer
            else None
        )

    def load_inspector(self) -> Inspect:
        """Import the function that judges files of this format for ``inspect``."""
        return cast("Inspect", _load(self.inspector))


def _load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
