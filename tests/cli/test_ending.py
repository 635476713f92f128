"""Commands that are told to end: at the very beginning, twice, and while something is finalized."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from imgtool import __main__ as entry
from imgtool.cli import main
from tests.kit.signals import heed

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def ended(script: str) -> tuple[int, str]:
    """How a program of its own, which heeds signals, ends, and what it says then."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, preexec_fn=heed,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_ctrl_c_while_the_command_line_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "imgtool.cli.main", Interrupting("imgtool.cli.main"))
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "imgtool: Interrupted\n"


def test_ctrl_c_before_the_first_statement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "imgtool: Interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_request_does_not_keep_the_target(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(os.urandom(8 << 20))
    command = [sys.executable, "-m", "imgtool", "convert", "-r", "1M", "-f", "raw", "-O", "raw"]
    with subprocess.Popen(
        [*command, "a.raw", "b.raw"],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, preexec_fn=heed,
    ) as running:  # fmt: skip
        end = time.monotonic() + 60
        while not (tmp_path / "b.raw").exists() and time.monotonic() < end:
            time.sleep(0.01)
        for _ in range(5):
            running.send_signal(number)
            time.sleep(0.002)
        assert running.wait(60) == 128 + number
        assert running.stderr is not None
        assert running.stderr.read() == b"imgtool: Interrupted\n"
    assert os.listdir(tmp_path) == ["a.raw"]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_in_a_finalizer_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python throws away what is raised in a finalizer.
    monkeypatch.setattr(main, "_told", float("-inf"))
    before = signal.signal(signal.SIGINT, main._interrupt)

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            passed.append(1)

    def work() -> None:
        Finalized()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)

    passed: list[int] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert passed
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_callback_comes_later(number: signal.Signals) -> None:
    """What a weak reference calls cannot raise anything, either."""
    script = f"""
import signal, sys, time, weakref
from imgtool.cli import main
class Thing: pass
def work():
    thing = Thing()
    reference = weakref.ref(thing, lambda gone: signal.raise_signal({int(number)}))
    del thing
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)
main.run = work
main.main()
"""
    assert ended(script) == (128 + number, "imgtool: Interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_once_all_is_done_comes_too_late() -> None:
    script = """
import signal
from imgtool import __main__ as entry
from imgtool.cli import main
set_handler = signal.signal
def late(number, handler):
    if handler is signal.SIG_IGN:
        signal.raise_signal(signal.SIGINT)
    return set_handler(number, handler)
signal.signal = late
main.run = lambda: 0
entry.main()
"""
    assert ended(script) == (0, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such locks")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_of_in_one_line(number: int, tmp_path: Path) -> None:
    script = f"""
import fcntl, sys
from imgtool.cli.main import main
def refuse(*arguments):
    raise OSError({number}, "no locks here")
fcntl.fcntl = refuse
sys.argv = ["imgtool", *sys.argv[1:]]
main()
"""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    made = run("create", "-q", "-f", "qcow2", "a.qcow2", "1M")
    assert made.returncode == 0
    assert made.stderr.startswith("imgtool: warning: 'a.qcow2' can't be locked on this host")
    assert len(made.stderr.splitlines()) == 1
    for words in (("info", "a.qcow2"), ("check", "-q", "a.qcow2")):
        read = run(*words)
        assert (read.returncode, read.stderr) == (0, "")
