"""The gate that readers pass while nobody has drained it."""

from __future__ import annotations

import threading

from imgtool.gate import Gate


def test_draining_waits_for_readers_and_keeps_others_out() -> None:
    gate = Gate()
    entered, leave, drained, open_again = (threading.Event() for _ in range(4))
    seen: list[str] = []

    def read() -> None:
        with gate:
            entered.set()
            leave.wait(10)
            seen.append("read")

    def drain() -> None:
        with gate.drained():
            seen.append("drained")
            drained.set()
            open_again.wait(10)
            seen.append("opened")

    def read_later() -> None:
        with gate:
            seen.append("read later")

    first = threading.Thread(target=read)
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=drain)
    second.start()
    assert not drained.wait(0.05)
    leave.set()
    assert drained.wait(10)
    third = threading.Thread(target=read_later)
    third.start()
    third.join(0.05)
    assert third.is_alive()
    open_again.set()
    for thread in (first, second, third):
        thread.join(10)
    assert seen == ["read", "drained", "opened", "read later"]


def test_who_has_drained_it_may_do_so_again() -> None:
    gate = Gate()
    with gate.drained():
        with gate.drained():
            pass
        # The inner one has not let anybody in.
        outside = threading.Thread(target=gate.__enter__, daemon=True)
        outside.start()
        outside.join(0.05)
        assert outside.is_alive()
    outside.join(10)
    assert not outside.is_alive()
