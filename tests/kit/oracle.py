"""What a disk ought to hold: a bytearray that is written to alongside the image under test."""

from __future__ import annotations


class OracleDisk:
    """A disk in memory. ``backing`` is what shines through where nothing was written.

    Bytes of which the truth is not known any more (a discard may leave what was there, uncover
    the backing image or read as zeros) are excepted from comparisons.
    """

    def __init__(self, size: int, backing: OracleDisk | None = None) -> None:
        below = bytes(backing.data[:size]) if backing is not None else b""
        self.data = bytearray(below.ljust(size, b"\0"))
        unknown = bytes(backing.unknown[:size]) if backing is not None else b""
        self.unknown = bytearray(unknown.ljust(size, b"\0"))

    @property
    def size(self) -> int:
        """The size in bytes."""
        return len(self.data)

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``; it has to fit."""
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data
        self.unknown[offset : offset + len(data)] = bytes(len(data))

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros."""
        self.write(offset, bytes(length))

    def discard(self, offset: int, length: int) -> None:
        """Forget what a range holds."""
        self.unknown[offset : offset + length] = b"\1" * length

    def resize(self, size: int) -> None:
        """Cut off, or append zeros."""
        for store in (self.data, self.unknown):
            store.extend(bytes(max(0, size - len(store))))
            del store[size:]

    def copy(self) -> OracleDisk:
        """The disk as it is now, to be kept."""
        twin = OracleDisk(0)
        twin.data[:] = self.data
        twin.unknown[:] = self.unknown
        return twin

    def agrees(self, content: bytes) -> bool:
        """Whether ``content`` is what the disk ought to hold."""
        if len(content) != self.size:
            return False
        if not any(self.unknown):
            return content == self.data
        import numpy as np

        known = np.frombuffer(self.unknown, dtype=np.uint8) == 0
        differs = np.frombuffer(content, dtype=np.uint8) != np.frombuffer(self.data, dtype=np.uint8)
        return not bool(np.any(known & differs))
