"""Budget: how large an image may be, and what memory and work it may ask for.

A budget is shared by all that is opened with it, a whole chain or several. Every open file has an
:class:`Account` of it. Whoever keeps a structure as long as an image says asks first, and whoever
walks tables says how far he has come. Reading and writing guest data asks nothing: that takes the
same few megabytes whatever the image is, and work by the bytes that are asked for.
"""

from __future__ import annotations

import threading

from imgtool.errors import OverBudget

#: Memory for the structures of open images where the caller sets no limit; bytes. With what Python
#: and one request need beside it, a process stays below 256 MiB.
DEFAULT_MEMORY = 192 << 20


class Budget:
    """What images may cost, for any number of them and of threads. Sizes are bytes.

    A disk of more than ``max_virtual_size`` is refused when it is opened.
    ``max_memory`` bounds what is kept of the images' structures at one time: tables, snapshots,
    bitmaps, caches, what a check or a repair counts. Without it that is 192 MiB, and a check or a
    repair may take twice what the host has stored of the file besides.

    ``max_work`` bounds the walks through tables by which a disk is mapped, checked or repaired, in
    steps: one for each KiB of tables that is looked at, and one for each extent that comes of it.
    Steps are never given back, so a budget is for one job then. A step takes some microseconds.
    What a guest reads and writes is no part of it.

    Raises ``ValueError`` for limits below zero.
    """

    def __init__(
        self,
        *,
        max_virtual_size: int | None = None,
        max_memory: int | None = None,
        max_work: int | None = None,
    ) -> None:
        for limit in (max_virtual_size, max_memory, max_work):
            if limit is not None and limit < 0:
                raise ValueError("a limit is a number, 0 or more")
        self.max_virtual_size = max_virtual_size
        self.max_memory = max_memory
        self.max_work = max_work
        self._taken = 0
        self._work = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """The memory that open images have taken, in bytes."""
        return self._taken

    @property
    def work(self) -> int:
        """The steps of work that have been done."""
        return self._work

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

    def spend(self, steps: int) -> bool:
        """Count so many steps of work, and say whether all that was done is allowed."""
        with self._lock:
            self._work += steps
        return self.max_work is None or self._work <= self.max_work


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

    def check_virtual_size(self, size: int) -> None:
        """Raise :class:`OverBudget` for a disk, of an open file, of more bytes than are allowed."""
        self._budget.check_virtual_size(size, self._filename)

    def release(self, amount: int) -> None:
        """Give ``amount`` bytes back that were charged for what is kept no longer."""
        self._charged -= amount
        self._budget.give_back(amount)

    def spend(self, steps: int) -> None:
        """Count steps of work as :class:`Budget` has them. Raises :class:`OverBudget`."""
        if not self._budget.spend(steps):
            allowed = self._budget.max_work or 0
            raise OverBudget(
                "Walking through its tables",
                self._budget.work,
                allowed,
                f"Walking through its tables takes more than the {allowed} steps of work that "
                "--max-work allows",
                filename=self._filename,
            )

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

    def check_virtual_size(self, size: int) -> None:
        """Raise :class:`OverBudget` for a disk, of an open file, of more bytes than are allowed."""
        self._budget.check_virtual_size(size, self._filename)

    def release(self, amount: int) -> None:
        return

    def spend(self, steps: int) -> None:
        return


UNLIMITED: Account = _Unlimited()
