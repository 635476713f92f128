"""Hash: a digest of what a disk holds, the same in every format."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from imgtool.chain import Opener, Reference
from imgtool.device import BlockDevice
from imgtool.errors import BadOption, ImageError
from imgtool.ops.convert.plan import Window, windows
from imgtool.ops.convert.source import ReadFailed, SourceReader, describe
from imgtool.ops.treehash import LEAF, TreeHash, leaf_digest
from imgtool.progress import Progress
from imgtool.workers import Workers

#: The first is the default.
ALGORITHMS = ("sha256", "sha512", "blake2b", "sha1", "md5")
#: Collisions can be made: these are there to compare with what others have published.
_BROKEN = ("sha1", "md5")

#: Leaves being read at a time: how much memory is used does not depend on the threads.
_AHEAD = 16

_ZEROS = bytes(LEAF)

Result = TypeVar("Result")


def hash_image(
    reference: Reference,
    algorithm: str = ALGORITHMS[0],
    *,
    raw: bool = False,
    workers: int | None = None,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> str:
    """Return the digest of an image's disk, in hexadecimal.

    By default it is the tree hash that docs/hash.md defines, which passes over zeros. With ``raw``
    it is the plain digest of the disk's bytes, the one that its raw file has; zeros are then hashed
    like all else. ``progress`` is called with bytes done and bytes in all.

    Raises :class:`BadOption` for an algorithm that is not in ``ALGORITHMS``, or that is broken and
    not asked for ``raw``; :class:`ImageError` naming the byte that can't be read.
    """
    if algorithm not in ALGORITHMS:
        raise BadOption(f"Unknown algorithm '{algorithm}': choose one of {', '.join(ALGORITHMS)}")
    if algorithm in _BROKEN and not raw:
        raise BadOption(f"The algorithm {algorithm} is only there for --raw digests")
    with (opener or Opener()).reference(reference) as device, Workers(workers) as pool:
        hasher = _Hasher(device, pool, progress or _ignore)
        return (hasher.plain(algorithm) if raw else hasher.tree(algorithm)).hex()


def _ignore(done: int, total: int) -> None:
    return None


class _Hasher:
    """Reads a disk leaf by leaf on threads, and takes the results in order."""

    def __init__(self, device: BlockDevice, workers: Workers, progress: Progress) -> None:
        self._device = device
        self._workers = workers
        self._progress = progress
        self._reader = SourceReader(device, salvage=False, warn=lambda text: None)
        self._free: list[bytearray] = []

    def tree(self, algorithm: str) -> bytes:
        """The tree hash; leaves are hashed on the threads."""
        tree = TreeHash(algorithm)

        def digest(window: Window) -> bytes:
            leaf = self._read(window)
            # Written zeros are common, and comparing costs a fiftieth of hashing.
            found = tree.zero_leaf if leaf == _ZEROS else leaf_digest(algorithm, leaf)
            self._free.append(leaf)
            return found

        for window, found in self._in_order(digest):
            tree.add_zeros(window.offset // LEAF - tree.leaves)
            tree.add(found)
            self._progress(window.offset, self._device.size)
        tree.add_zeros(-(-self._device.size // LEAF) - tree.leaves)
        self._progress(self._device.size, self._device.size)
        return tree.root(self._device.size)

    def plain(self, algorithm: str) -> bytes:
        """The digest of all bytes; only reading happens on the threads."""
        # Hosts that forbid broken algorithms allow them where nothing depends on their strength.
        digest = hashlib.new(algorithm, usedforsecurity=False)
        done = 0
        for window, leaf in self._in_order(self._read):
            self._hash_zeros(digest, done, window.offset)
            digest.update(memoryview(leaf)[: window.length])
            self._free.append(leaf)
            done = window.offset + window.length
            self._progress(done, self._device.size)
        self._hash_zeros(digest, done, self._device.size)
        self._progress(self._device.size, self._device.size)
        return digest.digest()

    def _hash_zeros(self, digest: hashlib._Hash, start: int, end: int) -> None:
        for offset in range(start, end, LEAF):
            digest.update(memoryview(_ZEROS)[: end - offset])
            self._progress(offset, self._device.size)

    def _in_order(self, work: Callable[[Window], Result]) -> Iterator[tuple[Window, Result]]:
        """Do ``work`` for each leaf that holds data, on the threads; give the results in order."""
        running: deque[tuple[Window, Future[Result]]] = deque()
        for window in windows(self._device.extents(), self._device.size, LEAF):
            running.append((window, self._workers.submit(work, window)))
            if len(running) > _AHEAD:
                yield self._result(*running.popleft())
        while running:
            yield self._result(*running.popleft())

    def _read(self, window: Window) -> bytearray:
        """Read a leaf; what lies past the end of the disk is zero."""
        try:
            leaf = self._free.pop()
        except IndexError:
            leaf = bytearray(LEAF)
        self._reader.fill(window, leaf)
        return leaf

    def _result(self, window: Window, future: Future[Result]) -> tuple[Window, Result]:
        try:
            return window, future.result()
        except ReadFailed as error:
            if isinstance(error.cause, ImageError):
                raise error.cause from None
            raise ImageError(
                f"error while reading at byte {error.offset}: {describe(error.cause)}",
                filename=self._device.name,
            ) from error.cause
