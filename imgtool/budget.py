"""Budget: how large an image may be, and what memory may be taken because an image says so.

A budget is shared by all that is opened with it, a whole chain or several. Every open file has an
:class:`Account` of it. Whoever keeps a structure as long as an image says asks first; reading and
writing guest data asks nothing, since that takes the same few megabytes whatever the image is.
"""

from __future__ import annotations

import threading

from imgtool.errors import OverBudget

#: Memory for the structures of open images where the caller sets no limit; bytes. With what Python
#: and one request need beside it, a process stays below 256 MiB.
DEFAULT_MEMORY = 192 << 20


class Budget:
    """What images may cost, for any number of them and of threads. Sizes are bytes.

    A disk of more than ``max_virtual_size`` is refused when it is opened; work of any kind is
    bounded by that size, as well as by what files hold. ``max_memory`` bounds what is kept of the
    images' structures at one time: tables, snapshots, bitmaps, caches, what a check counts. Without
    it that is 192 MiB, and a check may take twice what the host has stored of the file besides.

    Raises ``ValueError`` for limits below zero.
    """

    def __init__(
        self, *, max_virtual_size: int | None = None, max_memory: int | None = None
    ) -> None:
        for limit in (max_virtual_size, max_memory):
            if limit is not None and limit < 0:
                raise ValueError("a limit is a number of bytes, 0 or more")
        self.max_virtual_size = max_virtual_size
        self.max_memory = max_memory
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """The memory that open images have taken, in bytes."""
        return self._taken

    def account(self, filename: str) -> Account:
        """Open an account for a file."""
        return Account(self, filename)

    def check_virtual_size(self, size: int, filename: str) -> None:
        """Raise :class:`OverBudget` for a disk of more bytes than are allowed."""
        allowed = self.max_virtual_size
        if allowed is not None and size > allowed:
            raise OverBudget(
                "The disk",
                size,
                allowed,
                f"The disk has {size} bytes, and --max-virtual-size allows {allowed}",
                filename=filename,
            )

    def room(self, stored: int = 0) -> int:
        """The memory that is left, in bytes; ``stored`` is as :meth:`Account.charge` has it."""
        allowed = self.max_memory
        if allowed is None:
            allowed = DEFAULT_MEMORY + 2 * stored
        return max(0, allowed - self._taken)

    def take(self, amount: int, stored: int = 0) -> bool:
        """Take so many bytes of memory, or none, and say which."""
        with self._lock:
            if amount > self.room(stored):
                return False
            self._taken += amount
            return True

    def give_back(self, amount: int) -> None:
        """Undo :meth:`take`."""
        with self._lock:
            self._taken -= amount


class Account:
    """What one open file has taken of a budget; all of it goes back when the file is closed."""

    def __init__(self, budget: Budget, filename: str) -> None:
        self._budget = budget
        self._filename = filename
        self._charged = 0

    def room(self, stored: int = 0) -> int:
        """The memory that is left, in bytes."""
        return self._budget.room(stored)

    def check(self, amount: int, what: str) -> None:
        """Raise :class:`OverBudget` if ``amount`` bytes more, for ``what``, were too many now.

        For what is soon let go of again.
        """
        if amount > self._budget.room():
            raise self._over(amount, what, 0)

    def charge(self, amount: int, what: str, *, stored: int = 0) -> None:
        """Take ``amount`` bytes for ``what``, which is kept until the file is closed.

        ``stored`` is how many bytes the host has stored of the file, for structures whose size is
        justified by that. Raises :class:`OverBudget`.
        """
        if not self._budget.take(amount, stored):
            raise self._over(amount, what, stored)
        self._charged += amount

    def close(self) -> None:
        """Give everything back. Closing twice is harmless."""
        charged, self._charged = self._charged, 0
        if charged:
            self._budget.give_back(charged)

    def _over(self, amount: int, what: str, stored: int) -> OverBudget:
        room = self._budget.room(stored)
        return OverBudget(
            what,
            amount,
            room,
            f"{what} needs {amount} bytes of memory, and {room} are left of what is allowed; "
            "--max-memory allows more",
            filename=self._filename,
        )


class _Unlimited(Account):
    """The account of files that nobody opened with a budget."""

    def __init__(self) -> None:
        super().__init__(Budget(), "")

    def room(self, stored: int = 0) -> int:
        return 1 << 63

    def check(self, amount: int, what: str) -> None:
        return

    def charge(self, amount: int, what: str, *, stored: int = 0) -> None:
        return


UNLIMITED: Account = _Unlimited()
