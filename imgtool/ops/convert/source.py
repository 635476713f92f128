"""The reading half of the copy: fills a window's buffer, on worker threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imgtool import zeros
from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.extent import Extent, Kind
from imgtool.ops.convert.plan import Window

#: How finely a range that cannot be read is taken apart when errors are skipped.
_SALVAGE_STEPS = (64 << 10, 4096, 512)

Warn = Callable[[str], None]


@dataclass(frozen=True)
class SourceReader:
    """Reads windows of ``device``. With ``salvage`` what cannot be read becomes zeros."""

    device: BlockDevice
    salvage: bool
    warn: Warn

    def fill(self, window: Window, buffer: bytearray | memoryview) -> None:
        """Put the window's bytes into ``buffer``, zeros where there are none, up to its end."""
        view = memoryview(buffer)
        done = 0
        for part in window.data:
            start = part.offset - window.offset
            if done < start:
                zeros.fill(view[done:start])
            self._read(part, view[start : start + part.length])
            done = start + part.length
        zeros.fill(view[done:])

    def _read(self, part: Extent, view: memoryview) -> None:
        try:
            self._read_part(part, view)
        except (OSError, ImageError) as error:
            if not self.salvage:
                raise ReadFailed(part.offset, error) from error
            self._salvage(part.offset, view, _SALVAGE_STEPS)

    def _read_part(self, part: Extent, view: memoryview) -> None:
        # The mapping says where the bytes lie, so there is no need to look them up again.
        if part.kind is Kind.DATA and part.storage is not None and part.host_offset is not None:
            part.storage.read_into(part.host_offset, view)
        else:
            self.device.read_into(part.offset, view)

    def _salvage(self, offset: int, view: memoryview, steps: tuple[int, ...]) -> None:
        for start in range(0, len(view), steps[0]):
            piece = view[start : start + steps[0]]
            try:
                self.device.read_into(offset + start, piece)
            except (OSError, ImageError) as error:
                if len(steps) > 1:
                    self._salvage(offset + start, piece, steps[1:])
                else:
                    zeros.fill(piece)
                    self.warn(f"error while reading at byte {offset + start}: {describe(error)}")


class ReadFailed(Exception):
    """Reading the source failed at guest ``offset``; ``cause`` says why."""

    def __init__(self, offset: int, cause: Exception) -> None:
        super().__init__(offset, cause)
        self.offset = offset
        self.cause = cause


def describe(error: Exception) -> str:
    """What went wrong, without the names of files."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
