"""Every exception that imgtool raises of its own accord.

``OSError`` from the host passes through unchanged; everything else that an
image can provoke is an :class:`ImageError`.
"""

from __future__ import annotations

from collections.abc import Iterable


class ImageError(Exception):
    """An image, or a request made of it, is at fault.

    ``reason`` says what is wrong and, where there is something to do, what to do.
    ``filename`` is the image concerned, filled in by whoever knows it first. ``opening`` lists
    the images that could not be opened because of this: from the one deepest in the chain to the
    one that was asked for; it is empty if the error came later.
    """

    def __init__(self, reason: str, *, filename: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.filename = filename
        self.opening: tuple[str, ...] = ()

    def in_file(self, filename: str) -> ImageError:
        """Name the file, unless a layer below has named one already."""
        if self.filename is None:
            self.filename = filename
        return self

    def while_opening(self, filename: str) -> ImageError:
        """Note that the image could not be opened because of this."""
        self.opening = (*self.opening, filename)
        return self.in_file(filename)

    def within(self, what: str) -> ImageError:
        """Tell the error as a part of something larger that failed, ``what``, of no file yet."""
        self.reason = f"{what}: {self.reason}"
        self.filename = None
        self.opening = ()
        return self

    def __str__(self) -> str:
        return f"'{self.filename}': {self.reason}" if self.filename else self.reason


class WrongFormat(ImageError):
    """The file is not an image of the format it was opened as."""


class CorruptImage(ImageError):
    """A structure on disk contradicts the format's specification.

    ``what`` names the structure, ``offset`` is its byte offset in the file, if known.
    """

    def __init__(
        self, what: str, offset: int | None = None, *, filename: str | None = None
    ) -> None:
        where = "" if offset is None else f" (at offset {offset:#x})"
        super().__init__(f"{what}{where}", filename=filename)
        self.what = what
        self.offset = offset


class UnsupportedFeature(ImageError):
    """The image uses features, listed in ``names``, that imgtool does not implement."""

    def __init__(self, names: Iterable[str], *, filename: str | None = None) -> None:
        self.names = tuple(names)
        super().__init__(f"Unsupported feature(s): {', '.join(self.names)}", filename=filename)


class OutOfRange(ImageError, ValueError):
    """An offset or length lies outside the disk."""


class ReadOnly(ImageError):
    """A write was asked of a disk that is open read-only."""


class BadOption(ImageError, ValueError):
    """An option, size or name given by the caller is not acceptable."""


class NotPermitted(ImageError):
    """The image names another file, and the open policy does not allow it."""


class Closed(ImageError, ValueError):
    """A disk or a file was used after it had been closed, or while another thread closed it."""

    def __init__(self, *, filename: str | None = None) -> None:
        super().__init__("I/O operation on closed file", filename=filename)


class OverBudget(ImageError):
    """An image is larger, or needs more memory or work, than the caller's budget allows.

    ``what`` needs ``needed`` bytes, and ``allowed`` are allowed, or left of what is; or so many
    steps of work.
    """

    def __init__(
        self, what: str, needed: int, allowed: int, reason: str, *, filename: str | None = None
    ) -> None:
        super().__init__(reason, filename=filename)
        self.what = what
        self.needed = needed
        self.allowed = allowed


class InUse(ImageError):
    """Another process holds the image in a way that conflicts with this use."""
