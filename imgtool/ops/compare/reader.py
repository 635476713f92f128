"""Reads two disks side by side, on threads, and finds the first byte that differs."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from imgtool.device import BlockDevice
from imgtool.errors import ImageError
from imgtool.ops.compare.errors import Unreadable, reason
from imgtool.ops.compare.ranges import WINDOW, Window
from imgtool.workers import Workers

_ZEROS = bytes(WINDOW)

Buffers = tuple[bytearray, bytearray]


def first_difference(
    first: BlockDevice,
    second: BlockDevice,
    windows: Iterable[Window],
    report: Callable[[int], None],
) -> int | None:
    """The offset of the first byte in ``windows`` that differs, or None.

    ``report`` is told how many bytes from the start are known to be the same. Raises
    :class:`Unreadable`.
    """
    with Workers() as workers:
        buffers: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        # Two windows for each thread: one it works on, one that waits for it.
        depth = 2 * workers.count
        for _ in range(depth):
            buffers.put((bytearray(WINDOW), bytearray(WINDOW)))

        def examine(window: Window) -> int | None:
            borrowed = buffers.get()
            try:
                return _examine(first, second, window, borrowed)
            finally:
                buffers.put(borrowed)

        running: deque[tuple[Window, Future[int | None]]] = deque()
        for window in windows:
            running.append((window, workers.submit(examine, window)))
            if len(running) == depth:
                found = _settle(*running.popleft(), report)
                if found is not None:
                    return found
        while running:
            found = _settle(*running.popleft(), report)
            if found is not None:
                return found
    return None


def _settle(
    window: Window, examined: Future[int | None], report: Callable[[int], None]
) -> int | None:
    found = examined.result()
    if found is None:
        report(window.end)
    return found


def _examine(
    first: BlockDevice, second: BlockDevice, window: Window, buffers: Buffers
) -> int | None:
    one, other = buffers
    length = window.end - window.offset
    if window.read_first:
        _fill(first, window, one)
    if window.read_second:
        _fill(second, window, other)
    if not window.read_second:
        found = _first_unlike(_ZEROS, memoryview(one)[:length])
    elif not window.read_first:
        found = _first_unlike(_ZEROS, memoryview(other)[:length])
    else:
        found = _first_unlike(one, memoryview(other)[:length])
    return None if found is None else window.offset + found


def _fill(device: BlockDevice, window: Window, buffer: bytearray) -> None:
    try:
        device.read_into(window.offset, memoryview(buffer)[: window.end - window.offset])
    except (OSError, ImageError) as error:
        raise Unreadable(
            f"Error while reading offset {window.offset}: {reason(error)}", filename=device.name
        ) from error


def _first_unlike(one: bytes | bytearray, other: memoryview) -> int | None:
    """The first place where ``one`` differs from ``other``, which is not longer."""
    # startswith compares memory with memory: no copies, unlike slices, and no look at every
    # item in turn, as memoryviews take when they are compared.
    if one.startswith(other):
        return None
    low, high = 0, len(other)
    while high - low > 1:
        middle = (low + high) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle
    return low
