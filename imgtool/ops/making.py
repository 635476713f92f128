"""Making an image file: nothing is left behind that looks whole and is not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from imgtool.chain import plain_path
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.format import Format, NewImage
from imgtool.storage.base import Storage

if TYPE_CHECKING:
    from imgtool.storage.file import FileStorage


class Making:
    """An image being made in ``path``, and in its data file if it has one.

    Leaving the context without :meth:`finish` removes the files that this brought into being, and
    empties those that were there before.
    """

    def __init__(
        self,
        path: str,
        chosen: Format,
        size: int,
        options: Mapping[str, Any],
        *,
        backing: BlockDevice | None = None,
        cache: str = "writeback",
    ) -> None:
        from imgtool.storage.file import FileStorage

        self._files: list[FileStorage] = []
        self._image: NewImage | None = None
        self._finished = False
        nocow = bool(options.get("nocow", False))
        create = chosen.load_creator()
        try:
            chosen.judge_options(size, options)
            storage = FileStorage.create(path, cache=cache, nocow=nocow)
            self._files.append(storage)
            data: Storage | None = None
            if options.get("data_file"):
                data_path = plain_path(storage, options["data_file"], "data file")
                data = FileStorage.create(data_path, cache=cache, nocow=nocow)
                self._files.append(data)
            self._image = create(storage, size, options, data=data, backing=backing)
        except BaseException as error:
            self._undo()
            if isinstance(error, ImageError):
                raise error.in_file(path) from error.__cause__
            raise

    @property
    def device(self) -> BlockDevice:
        """The disk of the image, for writing."""
        assert self._image is not None
        return self._image.device

    @property
    def zeroed(self) -> bool:
        """Whether what is not written reads as zeros, or as the backing image."""
        return all(_is_regular(file) for file in self._files)

    def finish(self) -> None:
        """Make the file an image, and keep it."""
        assert self._image is not None
        self._image.finish()
        self._finished = True

    def _undo(self) -> None:
        if self._image is not None:
            # An image without a header has nothing to flush, so closing only lets go.
            with contextlib.suppress(OSError, ImageError):
                self._image.close()
        for file in self._files:
            if not file.created and _is_regular(file):
                with contextlib.suppress(OSError, ValueError):
                    os.truncate(file.name, 0)
            file.close()
            if file.created:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)

    def close(self) -> None:
        """Let go of the files; what is not finished is undone."""
        if not self._finished:
            self._undo()
        elif self._image is not None:
            self._image.close()

    def __enter__(self) -> Making:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _is_regular(file: FileStorage) -> bool:
    return os.path.isfile(file.name)
