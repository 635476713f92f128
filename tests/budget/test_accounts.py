"""The budget itself: what is charged to its accounts, and goes back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from imgtool import Budget, OverBudget
from imgtool.budget import DEFAULT_MEMORY
from imgtool.storage.file import FileStorage
from tests.budget.calls import plain


def test_accounts() -> None:
    budget = Budget(max_memory=100)
    one, other = budget.account("one"), budget.account("other")
    one.charge(60, "A table")
    other.check(40, "A list")
    other.charge(40, "A list")
    one.charge(0, "Nothing")
    assert (budget.taken, budget.room(), one.room()) == (100, 0, 0)
    with pytest.raises(OverBudget) as caught:
        other.charge(1, "The last straw")
    error = caught.value
    assert (error.what, error.needed, error.allowed) == ("The last straw", 1, 0)
    assert error.filename == "other"
    assert "--max-memory" in error.reason
    one.close()
    one.close()
    assert budget.taken == 40
    with pytest.raises(OverBudget):
        one.check(61, "A table")
    other.close()
    assert budget.taken == 0


def test_without_a_limit_what_is_stored_counts() -> None:
    budget = Budget()
    account = budget.account("x")
    account.charge(DEFAULT_MEMORY, "All")
    with pytest.raises(OverBudget):
        account.charge(1, "More")
    with pytest.raises(OverBudget):
        account.charge(21, "Counters", stored=10)
    account.charge(20, "Counters", stored=10)
    strict = Budget(max_memory=10).account("x")
    with pytest.raises(OverBudget):
        strict.charge(11, "Counters", stored=1 << 40)


def test_threads_take_no_more_than_there_is() -> None:
    budget = Budget(max_memory=1000)
    taken = []

    def work() -> None:
        for _ in range(1000):
            if budget.take(1):
                taken.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == budget.taken == 1000


def test_work_is_never_given_back() -> None:
    budget = Budget(max_work=10)
    one, other = budget.account("one"), budget.account("other")
    one.spend(6)
    other.spend(4)
    one.close()
    assert budget.work == 10
    with pytest.raises(OverBudget) as caught:
        other.spend(1)
    error = caught.value
    assert (error.needed, error.allowed, error.filename) == (11, 10, "other")
    assert "--max-work" in error.reason
    endless = Budget()
    endless.account("x").spend(1 << 60)
    assert endless.work == 1 << 60


def test_what_is_let_go_of_early_is_given_back() -> None:
    budget = Budget(max_memory=100)
    account = budget.account("x")
    account.charge(100, "A list")
    account.release(70)
    account.charge(70, "Another")
    account.close()
    assert budget.taken == 0


@pytest.mark.parametrize("limits", [{"max_memory": -1}, {"max_virtual_size": -1}, {"max_work": -1}])
def test_limits_below_zero(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Budget(**limits)


def test_a_file_keeps_no_account_of_a_budget_that_is_not_there(tmp_path: Path) -> None:
    with FileStorage.open(plain(tmp_path / "disk.qcow2")) as storage:
        storage.account.charge(1 << 60, "Anything")
        storage.account.check(1 << 60, "Anything")
